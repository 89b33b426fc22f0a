//! The size cap: never exceeded at any time, used almost completely, and reported correctly when the file
//! system is full.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_model::class::Class;
use larder_model::job::LayerFormat;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::{LayerBuilder, SparseForm};

use crate::harness::du::{Watched, used, watch};
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::served::{Served, nothing_staged, random};
use crate::harness::{Need, isolated, larder, succeed};

const MIB: u64 = 1 << 20;
const PLENTY: u64 = 400 * MIB;
const TOOLS: [Need; 2] = [Need::Program("mkfs.ext4"), Need::Program("mkfs.xfs")];

fn layer(name: &str) -> Layer {
    let new = LayerBuilder::new();
    let built = match name {
        "small files" => {
            (0..5000).fold(new, |b, n| b.file(format!("small/{}/{n}", n % 50), vec![b'x'; n * 7 % 6000]))
        }
        "large file" => new.file("large", [random(7, 4 << 20), vec![b'y'; 60 << 20]].concat()),
        "links" => (0..3000).fold(new, |b, n| b.symlink(format!("links/{n}"), "t/".repeat(30 + n % 400))),
        "attributes" => (0..1500).fold(new, |b, n| {
            let b = b.xattr("user.a", vec![b'v'; 101 + n % 900]).xattr("user.b", vec![b'w'; n % 200]);
            b.file(format!("attributes/{n}"), "content")
        }),
        "wide directory" => {
            (0..20_000).fold(new, |b, n| b.file(format!("wide/a-name-of-some-length-{n:08}"), ""))
        }
        "sparse files" => SparseForm::ALL.into_iter().enumerate().fold(new, |b, (n, form)| {
            let parts: Vec<_> = (0..40u64).map(|at| (at * 300_000, random(at, 9000))).collect();
            let parts: Vec<_> = parts.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
            b.sparse(form, format!("sparse-{n}"), 1 << 25, &parts)
        }),
        "replaced members" => (0..30).fold(new.dir("r"), |b, n| {
            b.file("r/again", random(n, 9000))
                .file(format!("r/{n}"), random(n, 9000))
                .symlink(format!("r/{n}"), "x")
        }),
        other => panic!("unknown layer {other}"),
    };
    // The tar is small if it compresses well, so each input byte causes many written bytes.
    built.gzip().into()
}

const LAYERS: [&str; 7] = [
    "small files",
    "large file",
    "links",
    "attributes",
    "wide directory",
    "sparse files",
    "replaced members",
];

fn image(names: &[&str]) -> Image {
    Image::builder(Format::Oci).layers(names.iter().map(|name| layer(name))).build()
}

/// Runs a build with the cap `size`, with any result.
fn capped(served: &Served, volume: &Path, size: u64) -> Watched {
    let seen = watch(&mut served.build(volume, size), volume);
    assert!(seen.max_bytes <= size, "{} of {size} bytes\n{}", seen.max_bytes, seen.said());
    seen
}

fn empty(volume: &Path) {
    if volume.exists() {
        fs::remove_dir_all(volume).unwrap();
    }
}

/// Checks the required size, a build with 1 % more (10 % for EROFS images), and builds with less.
fn check_cap(kind: Kind, form: LayerFormat, names: &[&str]) {
    let served = Served::new([image(names)]).with(form);
    let disk = FileSystem::new(kind, 2 * PLENTY);
    let volume = disk.path().join("volume");
    succeed(&mut served.build(&volume, PLENTY));
    let need = used(&volume);
    eprintln!("{kind:?} {form:?} {names:?}: need {need}");

    empty(&volume);
    // The ends of files wait next to the image of their layer until it is complete.
    let used = if form == LayerFormat::Erofs { 90 } else { 99 };
    let size = need * 100 / used + 1;
    let tight = capped(&served, &volume, size);
    eprintln!("    with {size}: at most {} in {} samples", tight.max_bytes, tight.samples);
    assert_eq!(tight.code(), Some(0), "{need} bytes do not fit in {size}\n{}", tight.said());
    succeed(larder().arg("verify").arg(&volume));

    empty(&volume);
    let short = capped(&served, &volume, need * 9 / 10);
    assert_eq!(short.code(), Some(73), "{}", short.said());
    refused_for_space(&served, &short);
    assert!(nothing_staged(&volume));
    let kept = match form {
        LayerFormat::Overlay => fs::read_dir(volume.join("overlay")).unwrap().count() - 1,
        LayerFormat::Erofs => fs::read_dir(volume.join("erofs/tar-split")).unwrap().count(),
    };
    succeed(&mut served.build(&volume, PLENTY));
    eprintln!("    with {}: {kept} layers are kept", need * 9 / 10);
    succeed(larder().arg("verify").arg(&volume));
}

/// The message names a layer of the image, the required space and the available space.
fn refused_for_space(served: &Served, build: &Watched) {
    assert_eq!(Class::NoSpace.exit_code(), 73);
    let said = build.said();
    let layers = &served.images[0].layers;
    assert!(layers.iter().any(|layer| said.contains(&layer.digest.to_string())), "no layer is named: {said}");
    assert!(said.contains("needs") && said.contains("are left"), "no need and have: {said}");
    assert!(said.contains("--size"), "no hint: {said}");
}

#[case]
fn the_cap_holds_on_ext4() {
    isolated(&TOOLS, || check_cap(Kind::Ext4 { inodes: 100_000 }, LayerFormat::Overlay, &LAYERS));
}

#[case]
fn the_cap_holds_on_xfs() {
    isolated(&TOOLS, || check_cap(Kind::Xfs, LayerFormat::Overlay, &LAYERS));
}

#[case]
fn the_cap_holds_on_tmpfs() {
    isolated(&TOOLS, || check_cap(Kind::Tmpfs, LayerFormat::Overlay, &LAYERS));
}

#[case]
fn the_cap_holds_for_images() {
    isolated(&TOOLS, || {
        for kind in [Kind::Ext4 { inodes: 100_000 }, Kind::Xfs, Kind::Tmpfs] {
            check_cap(kind, LayerFormat::Erofs, &LAYERS);
        }
    });
}

/// A hard link to a sparse file of a lower layer copies the file, holes included.
#[case]
fn a_sparse_file_that_is_copied_up_stays_sparse() {
    isolated(&TOOLS, || {
        let parts = [(0, random(1, 90_000)), (1 << 30, random(2, 90_000))];
        let parts: Vec<_> = parts.iter().map(|(at, bytes)| (*at, &bytes[..])).collect();
        let lower = LayerBuilder::new().sparse(SparseForm::Pax10, "hole", (1 << 30) + 90_000, &parts);
        let upper = LayerBuilder::new().hardlink("other", "hole");
        let layers = [lower.gzip().into(), upper.gzip().into()];
        let mut served = Served::new([Image::builder(Format::Oci).layers(layers).build()]);
        for form in [LayerFormat::Overlay, LayerFormat::Erofs] {
            served = served.with(form);
            for kind in [Kind::Ext4 { inodes: 1000 }, Kind::Xfs, Kind::Tmpfs] {
                let disk = FileSystem::new(kind, PLENTY);
                let volume = disk.path().join("volume");
                let seen = capped(&served, &volume, 2 * MIB);
                assert_eq!(seen.code(), Some(0), "{kind:?}: {}", seen.said());
                succeed(larder().arg("verify").arg(&volume));
            }
        }
    });
}

#[case]
fn a_full_file_system_is_named_and_heals_when_it_grows() {
    isolated(&TOOLS, || {
        let served = Served::new([image(&["small files", "large file"])]);
        let disk = FileSystem::new(Kind::Ext4 { inodes: 20_000 }, 40 * MIB);
        let volume = disk.path().join("volume");
        let full = watch(&mut served.build(&volume, PLENTY), &volume);
        assert_eq!(full.code(), Some(73), "{}", full.said());
        assert!(full.said().contains("No space left"), "{}", full.said());
        assert!(full.said().contains(&served.references()[0]), "{}", full.said());
        assert!(nothing_staged(&volume));
        assert!(!volume.join("cache.json").exists());
        disk.grow(200 * MIB);
        succeed(&mut served.build(&volume, PLENTY));
        succeed(larder().arg("verify").arg(&volume));
    });
}

#[case]
fn inodes_that_run_out_are_named_and_more_of_them_heal() {
    isolated(&TOOLS, || {
        let served = Served::new([image(&["large file", "small files"])]);
        let disk = FileSystem::new(Kind::Ext4 { inodes: 2000 }, 200 * MIB);
        let volume = disk.path().join("volume");
        let full = watch(&mut served.build(&volume, PLENTY), &volume);
        assert_eq!(full.code(), Some(73), "{}", full.said());
        assert!(full.said().contains("inodes"), "{}", full.said());
        assert!(full.said().contains(&served.references()[0]), "{}", full.said());
        assert!(nothing_staged(&volume));
        // A file system with more inodes, and a copy of the committed content.
        let larger = FileSystem::new(Kind::Ext4 { inodes: 20_000 }, 200 * MIB);
        let moved = larger.path().join("volume");
        succeed(Command::new("cp").arg("-a").arg(&volume).arg(&moved));
        succeed(&mut served.build(&moved, PLENTY));
        succeed(larder().arg("verify").arg(&moved));
    });
}
