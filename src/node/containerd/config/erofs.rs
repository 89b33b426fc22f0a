//! Additional settings for containerd's own EROFS snapshotter, which are up to the operator of the node.

use std::path::Path;
use std::process::Command;

use larder_model::platform::Platform;

/// The option in `mkfs.erofs --help` for images from tars, which containerd uses (its package erofsutils):
/// 1.7 and newer.
const FROM_TAR: &str = "--tar=";

/// Reports whether the `mkfs.erofs` at `program` can create images from tars. Only then does containerd load
/// its EROFS differ. If a configured differ is missing and not optional, CRI does not start.
pub fn makes_images_of_tars(program: &Path) -> bool {
    let help = Command::new(program).arg("--help").output();
    help.is_ok_and(|help| {
        [help.stdout, help.stderr].iter().any(|text| String::from_utf8_lossy(text).contains(FROM_TAR))
    })
}

/// Returns the settings as text. `from_tar` says whether the node's `mkfs.erofs` can create images from tars.
pub fn settings(from_tar: bool) -> String {
    let differ = if from_tar { "\n      differ = \"erofs\"" } else { "" };
    let lacking = if from_tar {
        ""
    } else {
        "No mkfs.erofs with --tar (erofs-utils 1.7 and newer) was found: layers that are on no volume are unpacked as directories \
         first. With it, add differ = \"erofs\" to unpack_config.\n"
    };
    format!(
        "\
containerd's own EROFS snapshotter uses the layers of attached volumes by diff ID if it has these settings:
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
    fn a_missing_differ_is_not_configured() {
        let is_set = |settings: &str| settings.lines().any(|line| line.trim_start().starts_with("differ = "));
        assert!(is_set(&settings(true)));
        assert!(!is_set(&settings(false)) && settings(false).contains("1.7 and newer"));
        assert!(!makes_images_of_tars(Path::new("/no/such/program")));
    }
}
