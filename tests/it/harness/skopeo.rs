//! Debian's skopeo copies an image out of a volume, which works only if tar-split reproduces each tar bit for
//! bit.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_model::digest::Digest;
use serde_json::Value;

use super::filesystem::unmount_below;
use super::succeed;

/// Copies `image` from the store on `volume` to an OCI layout in `dir` and returns the diff IDs of its
/// config.
///
/// skopeo recomputes the sha256 of every tar and fails if one does not match the diff ID.
pub(crate) fn copy_out(volume: &Path, image: &str, dir: &Path) -> Vec<Digest> {
    let volume = volume.canonicalize().unwrap();
    let source = format!(
        "containers-storage:[overlay@{dir}/root+{dir}/run:additionalimagestore={volume},overlay.imagestore={volume}]{image}",
        dir = dir.display(),
        volume = volume.display(),
    );
    let layout = dir.join("layout");
    succeed(
        Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", &source])
            .arg(format!("oci:{}:out", layout.display())),
    );
    // The store leaves a bind mount of itself behind.
    unmount_below(dir);
    diff_ids(&layout, 0)
}

/// Runs `skopeo copy` between any two of its transports.
pub(crate) fn copy(from: &str, to: &str) {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--insecure-policy", "--src-tls-verify=false"]);
    succeed(skopeo.args([from, to]));
}

/// Returns the diff IDs in the config of an image of an OCI layout, by its position in the index.
pub(crate) fn diff_ids(layout: &Path, image: usize) -> Vec<Digest> {
    let read = |digest: &str| -> Value {
        let path = layout.join("blobs").join(digest.replace(':', "/"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = read(index["manifests"][image]["digest"].as_str().unwrap());
    let config = read(manifest["config"]["digest"].as_str().unwrap());
    serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap()
}
