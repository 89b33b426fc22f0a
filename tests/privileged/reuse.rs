//! Reuse of layers from another disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Registry;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::served::random;
use crate::harness::{larder, succeed};
use crate::served::{events, wait_for_release, with_disks};

struct Shared {
    dir: TempDir,
    registry: Registry,
    images: Vec<Image>,
}

fn layer(seed: u64) -> Layer {
    let builder = LayerBuilder::new().dir("d").file(format!("d/{seed}"), random(seed, 300_000));
    Layer::from(builder.symlink("d/link", format!("{seed}")).gzip())
}

impl Shared {
    fn new(images: &[&[u64]]) -> Self {
        let mut registry = Registry::spawn();
        let images: Vec<_> = images
            .iter()
            .map(|seeds| Image::builder(Format::Oci).layers(seeds.iter().map(|seed| layer(*seed))).build())
            .collect();
        for (number, image) in images.iter().enumerate() {
            image.push(&mut registry, &format!("app-{number}"), "1").unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("volumes")).unwrap();
        Shared { dir, registry, images }
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.dir.path().join("volumes").join(name)
    }

    fn build(&self, name: &str, image: usize, kind: &str) -> Command {
        let mut command = larder();
        command.arg("build").arg("--share").arg(self.dir.path()).arg("--volume").arg(self.volume(name));
        command.args(["--sizing", "warn", "--output", "json", "--size", "64MiB"]);
        command.args(["--volume-kind", kind]).arg(format!("{}/app-{image}:1", self.registry.host()));
        command
    }

    fn built(&self, name: &str, image: usize, kind: &str) -> Vec<Value> {
        let events = events(&succeed(&mut self.build(name, image, kind)));
        succeed(larder().arg("verify").arg(self.volume(name)));
        events
    }

    fn served(&self, image: usize) -> Vec<bool> {
        self.images[image].layers.iter().map(|layer| self.registry.served(&layer.digest) > 0).collect()
    }
}

fn reused(events: &[Value]) -> usize {
    events.iter().filter(|event| event["event"] == "layer_reused").count()
}

fn warnings(events: &[Value]) -> Vec<&str> {
    let warnings = events.iter().filter(|event| event["event"] == "warning");
    warnings.map(|event| event["message"].as_str().unwrap()).collect()
}

#[case]
fn a_disk_takes_layers_from_another() {
    with_disks(|| {
        let shared = Shared::new(&[&[0, 1, 2], &[0, 1, 3]]);
        assert_eq!(reused(&shared.built("a", 0, "disk")), 0);
        shared.registry.forget();
        let second = shared.built("b", 1, "disk");
        assert_eq!(
            (reused(&second), shared.served(1)),
            (2, vec![false, false, true]),
            "{:?}",
            warnings(&second)
        );
        // From and to a directory.
        shared.registry.forget();
        shared.built("c", 1, "directory");
        let third = shared.built("d", 1, "disk");
        assert!(reused(&third) >= 1, "{:?}", warnings(&third));
        wait_for_release(shared.dir.path());
    });
}

#[case]
fn an_unreadable_disk_is_not_reused() {
    with_disks(|| {
        let shared = Shared::new(&[&[0, 1]]);
        shared.built("a", 0, "disk");
        let seal = shared.volume("a").join("cache.json");
        let kept = fs::read(&seal).unwrap();
        for damage in [
            |volume: &Path| fs::remove_file(volume.join("cache.json")).unwrap(),
            |volume: &Path| fs::write(volume.join("image.json"), "{}").unwrap(),
        ] {
            fs::write(&seal, &kept).unwrap();
            damage(&shared.volume("a"));
            shared.registry.forget();
            let name = format!("b{}", fs::read_dir(shared.dir.path().join("volumes")).unwrap().count());
            let events = shared.built(&name, 0, "disk");
            assert_eq!((reused(&events), shared.served(0)), (0, vec![true, true]));
            assert!(warnings(&events).iter().any(|w| w.contains("volume a")), "{:?}", warnings(&events));
            fs::remove_dir_all(shared.volume(&name)).unwrap();
            // Only the first volume is named again.
            for entry in fs::read_dir(shared.dir.path().join("layers")).unwrap() {
                let path = entry.unwrap().path();
                let text = fs::read_to_string(&path)
                    .unwrap()
                    .replace(&format!("\"volume\":\"{name}\""), "\"volume\":\"a\"");
                fs::write(&path, text).unwrap();
            }
        }
    });
}

#[case]
fn two_disks_at_once_do_not_wait_for_each_other() {
    with_disks(|| {
        let shared = Shared::new(&[&[0, 1, 2], &[2, 1, 0]]);
        let start = |name: &str, image| {
            let mut command = shared.build(name, image, "disk");
            command.args(["--limit-rate", "1MiB/s"]).stdout(std::process::Stdio::piped()).spawn().unwrap()
        };
        let both = [start("a", 0), start("b", 1)];
        for child in both {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
        }
        for name in ["a", "b"] {
            succeed(larder().arg("verify").arg(shared.volume(name)));
        }
    });
}
