//! Checks the tree that a container sees: Larder's layers, mounted, against an independent reference
//! implementation, and the reference against podman and containerd. docs/reference/runtimes.md lists the
//! cases in which runtimes disagree.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use larder_model::digest::Digest;
use larder_testing::image::{self, Format, Image};
use proptest::test_runner::{Config, TestRunner};

use crate::harness::containerd::Containerd;
use crate::harness::layers::{Member, Node, Packing, layer, read};
use crate::harness::overlay::View;
use crate::harness::podman::Podman;
use crate::harness::registry::Registry;
use crate::harness::tree::{Tolerance, differences, scan};
use crate::harness::{Need, isolated, larder, succeed};

mod generate;
mod reference;
mod tools;

use reference::Reference;

const REGISTRY: Need = Need::Program("docker-registry");

/// Returns a stack of layers with the corner cases on which all runtimes agree, and with implied directories.
fn corners() -> Image {
    let base = [
        Member::directory("./").mode(0o755),
        Member::directory("private/").mode(0o700).owner(1000, 1001).mtime(1_600_000_000, 5),
        Member::file("private/key", "k").mode(0o600).owner(1000, 1001),
        Member::file("gone", "x"),
        Member::directory("emptied/"),
        Member::file("emptied/a", "a"),
        Member::directory("emptied/b/"),
        Member::file("emptied/b/c", "c"),
        Member::directory("becomes-file/"),
        Member::file("becomes-file/x", "x"),
        Member::file("becomes-directory", "x"),
        Member::file("bin/su", "su").mode(0o4755).mtime(1_650_000_000, 123_456_789),
        Member::hard_link("bin/su2", "bin/su").mode(0o4755).mtime(1_650_000_000, 123_456_789),
        Member::file("noted", "n").xattr("user.note", b"one"),
        Member::new("null", Node::Character(1, 3)).mode(0o666),
        Member::new("pipe", Node::Fifo),
        Member::symlink("dangling", "/no/where"),
        Member::symlink("not-followed", "private"),
        Member::file("in-the-way", "x"),
    ];
    let second = [
        Member::whiteout(".wh.gone"),
        Member::whiteout("emptied/.wh..wh..opq"),
        Member::directory("emptied/"),
        Member::file("emptied/new", "new"),
        Member::file("private/cert", "c").owner(1000, 1001),
        Member::file("becomes-file", "now a file"),
        Member::directory("becomes-directory/"),
        Member::file("becomes-directory/y", "y"),
        Member::file("noted", "n").xattr("user.note", b"two"),
        Member::symlink("var/run", "../run"),
        Member::directory("run/"),
    ];
    let third = [
        Member::file("gone", "back again"),
        Member::whiteout("becomes-directory/.wh.y"),
        Member::whiteout("private/.wh.key"),
        Member::file("not-followed/x", "x"),
        Member::file("in-the-way/x", "x"),
    ];
    Image::builder(Format::Oci)
        .layers([&base[..], &second, &third].map(|members| layer(members, Packing::Gzip)))
        .build()
}

fn real() -> Image {
    let python = Path::new("/usr/lib/python3");
    let zones = Path::new("/usr/share/zoneinfo");
    let present: Vec<_> = [python, zones].into_iter().filter(|path| path.exists()).collect();
    Image::builder(Format::Docker)
        .layer(image::busybox().unwrap())
        .layers(image::from_files(&present, 16 << 20).unwrap())
        .build()
}

fn reference_of(image: &Image) -> Reference {
    let mut reference = Reference::default();
    for layer in &image.layers {
        reference.apply(&read(layer));
    }
    reference
}

fn diff_ids(image: &Image) -> Vec<Digest> {
    image.layers.iter().map(|layer| layer.diff_id.clone()).collect()
}

/// Returns the differences between the reference and the mounted layers of a volume built from `image`.
fn larder_differs(registry: &Registry, image: &Image, name: &str) -> Vec<String> {
    let reference = registry.push(image, name, "1");
    let dir = tempfile::tempdir().unwrap();
    let mut build = larder();
    build.arg("build").arg("--volume").arg(dir.path());
    succeed(build.args(["--size", "1GiB", &reference]));
    let view = View::mount(dir.path(), &diff_ids(image));
    differences(&reference_of(image).tree(), &scan(&view.path()), Tolerance::default())
}

/// Does the same for EROFS images. The volume's own verification and fsck.erofs must also accept them.
fn images_differ(registry: &Registry, image: &Image, name: &str) -> Vec<String> {
    let reference = registry.push(image, name, "1");
    let dir = tempfile::tempdir().unwrap();
    let mut build = larder();
    build.arg("build").arg("--volume").arg(dir.path()).args(["--layer-format", "erofs"]);
    succeed(build.args(["--size", "1GiB", &reference]));
    succeed(larder().arg("verify").arg(dir.path()));
    for image in images(dir.path()) {
        assert_eq!(crate::erofs::fsck(&image), "", "{}", image.display());
    }
    let view = View::mount_images(dir.path(), &diff_ids(image));
    let applied = reference_of(image);
    let mut found = scan(&view.path());
    // A different time of the root alone causes no fixup image, because a container has its own root.
    if let (Some(found), Some(want)) = (found.get_mut(""), applied.tree().get(""))
        && applied.implied().contains(&String::new())
        && found.mtime == Some((0, 0))
    {
        found.mtime = want.mtime;
    }
    differences(&applied.tree(), &found, Tolerance::default())
}

/// Returns all EROFS images of a volume.
fn images(volume: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![volume.join("erofs")];
    while let Some(path) = pending.pop() {
        match path.is_dir() {
            true => pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path())),
            false if path.extension().is_some_and(|extension| extension == "erofs") => found.push(path),
            false => {}
        }
    }
    found
}

fn runtime_differs(image: &Image, root: &Path) -> Vec<String> {
    let reference = reference_of(image);
    let tolerance = Tolerance { directory_times: true, directories: reference.implied() };
    differences(&reference.tree(), &scan(root), tolerance)
}

#[case]
fn larder_agrees_on_the_corners_and_on_real_files() {
    isolated(&[REGISTRY, Need::Program("busybox")], || {
        let registry = Registry::open();
        for (name, image) in [("corners", corners()), ("real", real())] {
            assert_eq!(larder_differs(&registry, &image, name), Vec::<String>::new(), "{name}");
        }
    });
}

#[case]
fn images_agree_on_the_corners_and_on_real_files() {
    isolated(&[REGISTRY, Need::Program("busybox"), Need::Program("fsck.erofs"), Need::Erofs], || {
        let registry = Registry::open();
        for (name, image) in [("corners", corners()), ("real", real())] {
            assert_eq!(images_differ(&registry, &image, name), Vec::<String>::new(), "{name}");
        }
    });
}

#[case]
fn images_agree_on_generated_images() {
    isolated(&[REGISTRY, Need::Program("fsck.erofs"), Need::Erofs], || generated(images_differ));
}

#[case]
fn larder_agrees_on_generated_images() {
    isolated(&[REGISTRY], || generated(larder_differs));
}

fn generated(differ: impl Fn(&Registry, &Image, &str) -> Vec<String>) {
    let registry = Registry::open();
    let number = Cell::new(0);
    let config = Config { cases: 32, max_shrink_iters: 256, failure_persistence: None, ..Config::default() };
    let checked = TestRunner::new(config).run(&generate::layers(), |layers| {
        number.set(number.get() + 1);
        let layers = layers.iter().map(|members| layer(members, Packing::Gzip));
        let image = Image::builder(Format::Oci).layers(layers).build();
        let found = differ(&registry, &image, &format!("generated/{}", number.get()));
        proptest::prop_assert!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    });
    checked.unwrap();
}

#[case]
fn podman_agrees() {
    isolated(&[REGISTRY, Need::Program("podman"), Need::Program("busybox")], || {
        let registry = Registry::open();
        for (name, image) in [("corners", corners()), ("real", real())] {
            let reference = registry.push(&image, name, "1");
            let podman = Podman::new();
            podman.pull(&reference);
            let root = podman.mount(&reference);
            assert_eq!(runtime_differs(&image, &root), Vec::<String>::new(), "{name}");
        }
    });
}

#[case]
fn containerd_agrees() {
    let programs = ["containerd", "ctr", "busybox"].map(Need::Program);
    isolated(&[&[REGISTRY], &programs[..]].concat(), || {
        let registry = Registry::open();
        for (name, image) in [("corners", corners()), ("real", real())] {
            let reference = registry.push(&image, name, "1");
            let containerd = Containerd::start();
            let root = containerd.pull_and_mount(&reference);
            assert_eq!(runtime_differs(&image, &root), Vec::<String>::new(), "{name}");
        }
    });
}
