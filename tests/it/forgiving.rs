//! Volumes that can be used again: nothing is committed, the build is done, or `--force` is given.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_model::digest::Digest;
use larder_model::seal::CacheManifest;
use larder_sys::Dir;
use larder_sys::lock::Lock;
use larder_testing::image::{Format, Image};
use serde_json::Value;

use crate::build::three_layers;
use crate::harness::layers::{Member, Packing, layer};
use crate::harness::registry::Registry;
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{Need, exits, isolated, larder, succeed};

const REGISTRY: Need = Need::Program("docker-registry");

fn build(volume: &Path, size: &str, reference: &str) -> Command {
    let mut larder = larder();
    larder.arg("build").arg("--volume").arg(volume).args(["--size", size, reference]);
    larder
}

fn sealed(volume: &Path) -> CacheManifest {
    CacheManifest::parse(&fs::read(volume.join("cache.json")).unwrap()).unwrap()
}

/// Runs `test` with a registry, the reference of an image in it, and a directory for the volume.
fn with_image(test: impl FnOnce(Registry, &str, &Path) + Send + 'static) {
    isolated(&[REGISTRY], move || {
        let registry = Registry::open();
        let reference = registry.push(&three_layers(Packing::Gzip), "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        test(registry, &reference, &dir.path().join("volume"));
    });
}

#[case]
fn a_volume_without_layers_is_free_for_another_job() {
    with_image(|registry, reference, volume| {
        fs::create_dir(volume).unwrap();
        // A typo, then the wrong format and a size below the 3x rule.
        exits(64, &mut build(volume, "256MiB", &registry.reference("team/app:2")));
        exits(73, build(volume, "1KiB", reference).args(["--layer-format", "erofs", "--sizing", "enforce"]));
        assert!(volume.join(".larder/job.json").exists() && volume.join("erofs").exists());
        succeed(&mut build(volume, "256MiB", reference));
        assert!(volume.join("overlay").exists() && !volume.join("erofs").exists());
        succeed(larder().arg("verify").arg(volume));
    });
}

#[case]
fn a_disk_without_layers_is_removed_and_another_job_can_start() {
    isolated(&[REGISTRY, Need::Program("mkfs.ext4")], || {
        let registry = Registry::open();
        let reference = registry.push(&three_layers(Packing::Gzip), "team/app", "1");
        let other = registry.push(&three_layers(Packing::Zstd), "team/other", "1");
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        let disk = ["--volume-kind", "disk"];
        fs::create_dir(&volume).unwrap();
        exits(64, build(&volume, "64MiB", &registry.reference("team/app:2")).args(disk));
        assert!(!volume.join("disk.img").exists());
        succeed(build(&volume, "auto", &reference).args(disk));
        exits(73, build(&volume, "64MiB", &other).args(disk));
        succeed(build(&volume, "64MiB", &other).args(disk).arg("--force"));
        assert_eq!(sealed(&volume).content.images[0].reference, other);
    });
}

#[case]
fn a_volume_with_layers_is_refused_and_the_difference_named() {
    with_image(|registry, _, volume| {
        let other = registry.push(&three_layers(Packing::Zstd), "team/other", "1");
        let large = "x".repeat(1 << 20);
        let layers = [Member::file("base", "small"), Member::file("top", &large)];
        let layers = layers.map(|member| layer(&[member], Packing::Plain));
        let image = Image::builder(Format::Oci).layers(layers).build();
        let reference = &registry.push(&image, "team/slow", "1");
        // Interrupted after the first layer.
        let slow = ["--limit-rate", "128KiB/s", "--deadline", "4s"];
        exits(75, build(volume, "256MiB", reference).args(slow));
        let has_layers = fs::read_dir(volume.join("overlay-layers")).unwrap().count() > 1;
        assert!(has_layers, "the deadline came before the first layer");
        let before = scan(volume);
        let said = exits(73, &mut build(volume, "256MiB", &other));
        assert!(
            said.contains("another job") && said.contains(reference) && said.contains("--force"),
            "{said}"
        );
        let changed = differences(&before, &scan(volume), Tolerance::default());
        assert_eq!(changed, Vec::<String>::new());
        succeed(&mut build(volume, "256MiB", reference));

        let other_platform = ["--platform", "linux/s390x"];
        let said = exits(73, build(volume, "256MiB", reference).args(other_platform));
        assert!(said.contains("not linux/s390x") && said.contains("--force"), "{said}");
    });
}

#[case]
fn a_sealed_volume_is_done_unless_another_size_is_wanted() {
    with_image(|_registry, reference, volume| {
        let first = succeed(&mut build(volume, "256MiB", reference));
        assert!(first.starts_with("sealed "), "{first}");
        let before = scan(volume);
        let again = succeed(&mut build(volume, "256MiB", reference));
        assert!(again.contains("is already sealed, nothing to do"), "{again}");
        let json = succeed(build(volume, "256MiB", reference).args(["--output", "json"]));
        let last: Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
        assert_eq!(last["already_sealed"], true);
        let said = exits(73, &mut build(volume, "512MiB", reference));
        assert!(said.contains("already sealed with --size 256MiB, not 512MiB"), "{said}");
        let changed = differences(&before, &scan(volume), Tolerance::default());
        assert_eq!(changed, Vec::<String>::new());
    });
}

#[case]
fn an_automatic_size_is_three_times_the_images() {
    with_image(|registry, reference, volume| {
        let large = "x".repeat(8 << 20);
        let image =
            Image::builder(Format::Oci).layer(layer(&[Member::file("large", &large)], Packing::Plain));
        let other = registry.push(&image.build(), "team/large", "1");
        let said = exits(0, &mut build(volume, "auto", &other));
        assert!(said.contains("size: 25MiB"), "{said}");
        assert_eq!(sealed(volume).content.size.exact(), "25MiB");
        // The sealed volume is used as it is, without the registry.
        registry.stop();
        let said = exits(0, &mut build(volume, "auto", &other));
        assert!(said.contains("already sealed"), "{said}");
        let absent = volume.parent().unwrap().join("absent");
        let said = exits(69, build(&absent, "auto", reference).args(["--deadline", "60s"]));
        assert!(said.contains(reference), "{said}");
    });
}

#[case]
fn force_starts_over_and_keeps_foreign_files() {
    with_image(|registry, reference, volume| {
        let other = registry.push(&three_layers(Packing::Zstd), "team/other", "1");
        succeed(&mut build(volume, "256MiB", reference));
        fs::write(volume.join("precious"), "data").unwrap();
        let erofs = ["--force", "--layer-format", "erofs"];
        // A wrong tag deletes nothing.
        exits(64, build(volume, "512MiB", &registry.reference("team/other:2")).args(erofs));
        assert_eq!(sealed(volume).content.images[0].reference, reference);
        succeed(build(volume, "512MiB", &other).args(erofs));
        assert_eq!(sealed(volume).content.images[0].reference, other);
        assert!(!volume.join("overlay").exists());
        assert_eq!(fs::read_to_string(volume.join("precious")).unwrap(), "data");

        // A directory that is not a volume.
        let foreign = volume.parent().unwrap().join("foreign");
        fs::create_dir_all(foreign.join("overlay")).unwrap();
        fs::write(foreign.join("overlay/file"), "data").unwrap();
        exits(73, build(&foreign, "256MiB", reference).arg("--force"));
        assert_eq!(fs::read_to_string(foreign.join("overlay/file")).unwrap(), "data");
    });
}

#[case]
fn force_refuses_a_volume_in_use() {
    with_image(|_registry, reference, volume| {
        succeed(&mut build(volume, "256MiB", reference));
        let before: Digest = sealed(volume).digest;
        let force = || {
            let said = exits(75, build(volume, "512MiB", reference).arg("--force"));
            assert_eq!(sealed(volume).digest, before);
            said
        };
        let larder_dir = Dir::open(&volume.join(".larder")).unwrap();
        let lock = Lock::try_exclusive(&larder_dir, b"lock").unwrap().unwrap();
        assert!(force().contains("locked by another builder"));
        drop(lock);
        let reader = Lock::try_shared(&larder_dir, b"use").unwrap().unwrap();
        assert!(force().contains("a process is reading it"));
        drop(reader);
        let at = volume.parent().unwrap().join("mounted");
        fs::create_dir(&at).unwrap();
        succeed(Command::new("mount").arg("--bind").arg(volume).arg(&at));
        assert!(force().contains("it is mounted at"));
        succeed(Command::new("umount").arg(&at));
        succeed(build(volume, "512MiB", reference).arg("--force"));
    });
}
