//! Manifests, indexes and configs that are unusual but harmless.

use std::process::Command;

use larder_model::platform::Platform;
use larder_testing::image::{self, Format, Image, Layer, Target as _};
use larder_testing::registry::Registry as Fake;
use serde_json::json;

use super::*;
use crate::harness::containerd::Containerd;
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::{Need, exits, isolated};

fn busybox(label: &str) -> Image {
    Image::builder(Format::Oci).layer(image::busybox().unwrap()).label("n", label).build()
}

fn without_platform(config: &mut Value) {
    let config = config.as_object_mut().unwrap();
    config.remove("os");
    config.remove("architecture");
}

fn empty_platform(config: &mut Value) {
    config["os"] = "".into();
    config["architecture"] = "".into();
}

/// Returns an index with exactly these entries.
fn index(entries: &[Value]) -> Document {
    let index = json!({"schemaVersion": 2, "mediaType": Format::Oci.index(), "manifests": entries});
    Document::new(Format::Oci.index(), &index)
}

fn entry(image: &Image, more: Value) -> Value {
    let mut entry = image.manifest.descriptor();
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

#[case]
fn podman_and_containerd_pull_them_and_podman_runs_them_from_a_volume() {
    isolated(&["docker-registry", "busybox", "podman", "containerd", "ctr"].map(Need::Program), || {
        let registry = Registry::open();
        let (plain, other) = (busybox("plain"), busybox("other"));
        let artifact =
            edited(&plain, |_| {}, |manifest| manifest["artifactType"] = "application/x.app".into());
        let absent = edited(&plain, without_platform, |_| {});
        let empty = edited(&plain, empty_platform, |_| {});
        let platform = json!({"platform": {"os": "linux", "architecture": Platform::host().architecture}});
        for (tag, image) in [("artifact", &artifact), ("absent", &absent), ("empty", &empty)] {
            registry.push(image, "odd", tag);
        }
        registry.push(&other, "odd", "other");
        registry.push(&plain, "odd", "plain");
        for (tag, entries) in [
            ("promised", [entry(&absent, platform.clone())].to_vec()),
            ("odd-entry", [entry(&other, json!({"platform": {}})), entry(&plain, platform.clone())].to_vec()),
            (
                "artifact-entry",
                [entry(&other, json!({"artifactType": "application/x.sig"})), entry(&plain, platform)]
                    .to_vec(),
            ),
        ] {
            registry.client("odd").put_manifest("odd", tag, &index(&entries)).unwrap();
        }
        for tag in ["artifact", "absent", "empty", "promised", "odd-entry", "artifact-entry"] {
            let reference = registry.reference(&format!("odd:{tag}"));
            Podman::new().pull(&reference);
            Containerd::start().pull_and_mount(&reference);
            let dir = tempfile::tempdir().unwrap();
            let volume = dir.path().join("volume");
            build(&volume, "overlay", &reference);
            let printed = Podman::new().run(&volume, &reference, &["/bin/echo", "started"]);
            assert_eq!(printed, "started\n", "{tag}");
        }
    });
}

/// Overlayfs mounts at most 500 layers, which limits all runtimes.
#[case]
fn an_image_of_more_layers_than_can_be_mounted() {
    isolated(&[], || {
        let registry = Fake::spawn();
        let layer = Layer::from(larder_testing::layer::LayerBuilder::new().file("x", "x").gzip());
        let image = |layers| Image::builder(Format::Oci).layers(vec![layer.clone(); layers]).build();
        for (layers, code) in [(500, 0), (501, 65), (10_000, 65)] {
            let image = image(layers);
            registry.put_blob(image.config.bytes.clone());
            let tag = layers.to_string();
            registry.put_manifest("deep", &tag, &image.manifest.media_type, image.manifest.bytes.clone());
            let reference = format!("{}/deep:{tag}", registry.host());
            let mut plan: Command = larder();
            let said = exits(code, plan.args(["plan", &reference]));
            assert!(code == 0 || said.contains(&format!("{layers} layers, but the limit is 500")), "{said}");
        }
        assert_eq!(registry.requests("/blobs/"), 1, "the config of a refused image must not be read");
    });
}
