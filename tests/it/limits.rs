//! Limits of space, inodes and memory: the error names the exhausted resource, and no limit is exceeded.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_testing::image::{self, Format, Image};

use crate::harness::cgroup::MemoryCgroup;
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::layers::{Member, Node, Packing, layer};
use crate::harness::registry::Registry;
use crate::harness::{Need, exits, isolated, larder, succeed};

const REGISTRY: Need = Need::Program("docker-registry");
const MIB: u64 = 1 << 20;

/// Returns `larder build` of one image with a cap of `size` bytes.
fn build(volume: &Path, size: u64, reference: &str) -> Command {
    let mut larder = larder();
    larder.arg("build").arg("--volume").arg(volume);
    larder.args(["--size", &format!("{size}B"), reference]);
    larder
}

/// Returns an image whose only layer has `count` files of `size` zeros, so it compresses well.
fn files(count: usize, size: usize) -> Image {
    let members: Vec<_> =
        (0..count).map(|n| Member::new(&format!("f/{n}"), Node::File(vec![0; size]))).collect();
    Image::builder(Format::Oci).layer(layer(&members, Packing::Gzip)).build()
}

/// Returns the bytes that `du -s -B1` counts.
fn used(volume: &Path) -> u64 {
    let printed = succeed(Command::new("du").args(["-s", "-B1"]).arg(volume));
    printed.split('\t').next().unwrap().parse().unwrap()
}

/// Checks that neither staging nor a seal is left of a failed build.
fn nothing_visible(volume: &Path) {
    assert!(!volume.join("cache.json").exists());
    let layers = fs::read_dir(volume.join("overlay")).into_iter().flatten();
    let names = layers.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let layers: Vec<_> = names.filter(|name| name.len() == 64).collect();
    assert_eq!(layers, Vec::<String>::new());
}

#[case]
fn inodes_that_run_out_fail_the_build() {
    isolated(&[REGISTRY, Need::Program("mkfs.ext4")], || {
        let registry = Registry::open();
        let reference = registry.push(&files(2000, 10), "many", "1");
        let disk = FileSystem::new(Kind::Ext4 { inodes: 512 }, 64 * MIB);
        let volume = disk.path();
        let said = exits(73, &mut build(&volume, 48 * MIB, &reference));
        assert!(said.contains(&reference), "{said}");
        nothing_visible(&volume);
    });
}

#[case]
fn a_cap_that_is_too_small_fails_the_build() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let reference = registry.push(&files(8, 1 << 20), "zeros", "1");
        let dir = tempfile::tempdir().unwrap();
        let said = exits(73, &mut build(dir.path(), 4 * MIB, &reference));
        assert!(said.contains(&reference), "{said}");
        nothing_visible(dir.path());
        assert!(used(dir.path()) <= 4 * MIB);
    });
}

#[case]
fn every_file_system_keeps_to_the_cap() {
    isolated(&[REGISTRY, Need::Program("mkfs.ext4"), Need::Program("mkfs.xfs")], || {
        let registry = Registry::open();
        let image = Image::builder(Format::Oci)
            .layer(image::busybox().unwrap())
            .layers(files(300, 30_000).layers)
            .build();
        let reference = registry.push(&image, "mixed", "1");
        for kind in [Kind::Ext4 { inodes: 4096 }, Kind::Xfs, Kind::Tmpfs] {
            let disk = FileSystem::new(kind, 512 * MIB);
            let volume = disk.path().join("volume");
            let size = 32 * MIB;
            succeed(&mut build(&volume, size, &reference));
            let used = used(&volume);
            assert!(used <= size, "{kind:?}: {used}");
            succeed(larder().arg("verify").arg(&volume));
        }
    });
}

#[case]
fn a_gigabyte_layer_fits_a_quarter_of_memory() {
    isolated(&[REGISTRY, Need::MemoryCgroup], || {
        let registry = Registry::open();
        let reference = registry.push(&files(16, 64 << 20), "large", "1");
        let dir = tempfile::tempdir().unwrap();
        let cgroup = MemoryCgroup::new("build", 256 * MIB);
        succeed(&mut cgroup.wrap(&build(dir.path(), 2048 * MIB, &reference)));
        assert!(cgroup.peak() <= 256 * MIB);
    });
}
