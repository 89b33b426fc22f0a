//! What a node of containerd's own EROFS snapshotter needs beside our file, because it is the node's to decide.

use std::path::Path;
use std::process::Command;

use larder_model::platform::Platform;

/// What `mkfs.erofs --help` has if it makes images of tars, as containerd asks (its package erofsutils): 1.7 and newer.
const FROM_TAR: &str = "--tar=";

/// Whether the `mkfs.erofs` at `program` makes images of tars. containerd loads its EROFS differ only then, and no CRI at all where a
/// differ that is configured, and is not optional, is missing.
pub fn makes_images_of_tars(program: &Path) -> bool {
    let help = Command::new(program).arg("--help").output();
    help.is_ok_and(|help| {
        [help.stdout, help.stderr].iter().any(|text| String::from_utf8_lossy(text).contains(FROM_TAR))
    })
}

/// The settings, for a node whose `mkfs.erofs` makes images of tars or does not.
pub fn settings(from_tar: bool) -> String {
    let differ = if from_tar { "\n      differ = \"erofs\"" } else { "" };
    let lacking = if from_tar {
        ""
    } else {
        "No mkfs.erofs with --tar (erofs-utils 1.7 and newer) was found: layers that no volume has are unpacked as directories \
         first. With it, add differ = \"erofs\" to unpack_config.\n"
    };
    format!(
        "\
containerd's own EROFS snapshotter takes layers of attached volumes by diff ID, when the node is set up for it:
  [plugins.\"io.containerd.cri.v1.images\"]
    snapshotter = \"erofs\"
  [plugins.\"io.containerd.transfer.v1.local\"]
    max_concurrent_unpacks = 4          # with 1, the default, only base layers are looked up
    [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]
      platform = \"{platform}\"
      snapshotter = \"erofs\"{differ}
      optional = true                   # CRI starts without a missing plugin
{lacking}enable_fsverity and set_immutable of the snapshotter must be off.",
        platform = Platform::host(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_differ_that_is_not_there_is_not_named() {
        let is_set = |settings: &str| settings.lines().any(|line| line.trim_start().starts_with("differ = "));
        assert!(is_set(&settings(true)));
        assert!(!is_set(&settings(false)) && settings(false).contains("1.7 and newer"));
        assert!(!makes_images_of_tars(Path::new("/no/such/program")));
    }
}
