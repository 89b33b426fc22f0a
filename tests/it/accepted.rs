//! Larder accepts everything that containerd, podman and skopeo all accept, and a container sees the same
//! files.

mod documents;
mod layers;
mod registries;

use std::path::Path;

use larder_model::digest::Digest;
use larder_testing::image::{Document, Image};
use serde_json::Value;

use crate::harness::overlay::View;
use crate::harness::tree::{Tree, scan};
use crate::harness::{larder, succeed};

/// Both layer formats.
const FORMS: [&str; 2] = ["overlay", "erofs"];

/// Builds and verifies a sealed volume of one image.
fn build(volume: &Path, form: &str, reference: &str) {
    let mut build = larder();
    build.arg("build").arg("--volume").arg(volume).args(["--layer-format", form, "--sizing", "warn"]);
    succeed(build.args(["--size", "256MiB", reference]));
    succeed(larder().arg("verify").arg(volume));
}

/// Returns the tree that a container of `image` sees of the layers on a volume.
fn seen(volume: &Path, form: &str, image: &Image) -> Tree {
    let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let view = match form {
        "erofs" => View::mount_images(volume, &diff_ids),
        _ => View::mount(volume, &diff_ids),
    };
    scan(&view.path())
}

/// Returns the image with another config and another manifest.
fn edited(image: &Image, config: impl Fn(&mut Value), manifest: impl Fn(&mut Value)) -> Image {
    let read = |document: &Document| serde_json::from_slice(&document.bytes).unwrap();
    let mut of_config: Value = read(&image.config);
    config(&mut of_config);
    let config = Document::new(&image.config.media_type, &of_config);
    let mut of_manifest: Value = read(&image.manifest);
    of_manifest["config"] = config.descriptor();
    manifest(&mut of_manifest);
    let manifest = Document::new(&image.manifest.media_type, &of_manifest);
    Image { config, manifest, ..image.clone() }
}
