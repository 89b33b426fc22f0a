//! Disks that are too small: filled to the last block and to the last inode.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;

use crate::harness::served::{Served, random};
use crate::harness::{exits, larder, succeed};
use crate::served::{MIB, build, wait_for_release, with_disks};

fn files(prefix: &str, count: usize, size: usize) -> Layer {
    let new = LayerBuilder::new();
    let content = random(1, size);
    Layer::from((0..count).fold(new, |b, n| b.file(format!("{prefix}/{}/{n}", n % 100), &content)).gzip())
}

fn large(seed: u64, mib: usize) -> Layer {
    let content = vec![u8::try_from(seed).unwrap(); mib << 20];
    Layer::from(LayerBuilder::new().file(format!("large-{seed}"), content).gzip())
}

fn refused(output: &Output, served: &Served, lacks: &str) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(73), "{said}");
    let layers = served.images.iter().flat_map(|image| &image.layers);
    assert!(
        layers.clone().any(|layer| said.contains(&layer.digest.to_string())),
        "no layer is named: {said}"
    );
    assert!(said.contains(&served.references()[0]), "no image is named: {said}");
    assert!(said.contains("it needs") && said.contains("are left") && said.contains("--size"), "{said}");
    assert!(said.contains(lacks), "{said}");
    said
}

/// Returns the free blocks and inodes of an unmounted disk.
fn left(volume: &Path) -> (u64, u64) {
    let text = succeed(Command::new("dumpe2fs").arg("-h").arg(volume.join("disk.img")));
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse().unwrap()
    };
    (number("Free blocks:") * 4096, number("Free inodes:"))
}

#[case]
fn to_the_last_block_of_256_mib() {
    with_disks(|| {
        // The layers are extracted one after the other, the largest first. The last does not fit.
        let layers: Vec<Layer> =
            (0..6u8).map(|seed| large(seed.into(), 50 - 2 * usize::from(seed))).collect();
        let served = Served::new([Image::builder(Format::Oci).layers(layers).build()]);
        let volume = served.volume();
        let output = build(&served, &volume, 256 * MIB).args(["--concurrency", "1"]).output().unwrap();
        eprintln!("{}", refused(&output, &served, "256 MiB"));
        wait_for_release(&volume);
        assert!(!volume.join("cache.json").exists());
        // The same command with a larger size grows the disk and continues.
        served.registry.forget();
        succeed(&mut build(&served, &volume, 512 * MIB));
        let layers = served.images[0].layers.iter();
        let kept = layers.filter(|layer| served.registry.served(&layer.digest) == 0).count();
        assert_eq!(kept, 5, "committed layers must be kept");
        assert_eq!(fs::metadata(volume.join("disk.img")).unwrap().len(), 512 * MIB);
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn to_the_last_block_of_1_gib() {
    with_disks(|| {
        let layers: Vec<Layer> = (0..12).map(|seed| large(seed, 90)).collect();
        let served = Served::new([Image::builder(Format::Oci).layers(layers).build()]);
        let volume = served.volume();
        let output = build(&served, &volume, 1 << 30).output().unwrap();
        eprintln!("{}", refused(&output, &served, "1 GiB"));
        wait_for_release(&volume);
    });
}

/// The usable space of a disk: only inode tables and a few blocks are lost.
#[case]
fn almost_all_of_a_disk_is_for_content() {
    with_disks(|| {
        let fits = |mib: usize| {
            let served = Served::new([Image::builder(Format::Oci).layer(large(3, mib)).build()]);
            let output = build(&served, &served.volume(), 256 * MIB).output().unwrap();
            (output.status.code(), output.status.success().then(|| left(&served.volume())))
        };
        let (code, left) = fits(236);
        assert_eq!(code, Some(0), "236 MiB must fit in 256 MiB");
        eprintln!("after 236 MiB of content in 256 MiB, {left:?} are left");
        assert_eq!(fits(255).0, Some(73));
    });
}

#[case]
fn to_the_last_inode() {
    with_disks(|| {
        // 256 MiB have 32768 inodes.
        let layers = [files("a", 16_000, 10), files("b", 18_000, 10)];
        let served = Served::new([Image::builder(Format::Oci).layers(layers).build()]);
        let volume = served.volume();
        let output = build(&served, &volume, 256 * MIB).output().unwrap();
        let said = refused(&output, &served, "inodes");
        assert!(said.contains("0 of the volume's 32768 inodes"), "{said}");
        wait_for_release(&volume);
        succeed(&mut build(&served, &volume, 512 * MIB));
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn a_smaller_size_is_refused_for_a_disk_that_is_there() {
    with_disks(|| {
        let served = Served::new([Image::builder(Format::Oci).layers([large(2, 60), large(1, 30)]).build()]);
        let volume = served.volume();
        // One layer after the other, so that the first is committed when the second does not fit.
        exits(73, build(&served, &volume, 80 * MIB).args(["--concurrency", "1"]));
        let said = exits(73, &mut build(&served, &volume, 72 * MIB));
        assert!(said.contains("--size is"), "{said}");
        succeed(&mut build(&served, &volume, 128 * MIB));
    });
}

/// An attribute that ext4 cannot store causes the same system error as a full disk, but is reported
/// differently.
#[case]
fn an_attribute_too_large_for_ext4_is_not_taken_for_a_full_disk() {
    with_disks(|| {
        let layer = LayerBuilder::new().xattr("user.large", vec![b'x'; 20_000]).file("f", "f").gzip();
        let served = Served::new([Image::builder(Format::Oci).layer(Layer::from(layer)).build()]);
        let said = exits(73, &mut build(&served, &served.volume(), 64 * MIB));
        assert!(!said.contains("are left"), "{said}");
    });
}
