//! Writes the same tar in both layer formats. The trees, the pending fixups, the rebuilt tar and the errors
//! must be the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use larder_layer::applied::Applied;
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::erofs::{self, Options};
use larder_layer::erofs_sink::apply::Image;
use larder_layer::extract::{self, Expected, Extracted, TarSplitTarget, Target, extract};
use larder_layer::limits::Limits;
use larder_layer::lower::Lower;
use larder_layer::metadata::OPAQUE_XATTR;
use larder_layer::overlay::attributes::Rights;
use larder_layer::rebuild::Rebuilt;
use larder_layer::space::NoAccounting;
use larder_layer::stored::StoredDir;
use larder_layer::{erofs_sink, overlay};
use larder_model::digest::{Algorithm, Digest};
use larder_sys::{Dir, FileType, Timestamp, process};
use larder_testing::layer::{LayerBuilder, SparseForm};
use proptest::prelude::*;
use tempfile::TempDir;

use super::found::{self, Found, Kind};
use super::reader;

struct Chunks(Bytes);

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.0.split_to(self.0.len().min(5000));
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

fn run(
    tar: &[u8],
    target: Target<'_>,
    split: Option<TarSplitTarget<'_>>,
) -> Result<Extracted, extract::Error> {
    let digest = Digest::sha256(tar);
    let expected = Expected { blob: digest.clone(), size: tar.len() as u64, diff_id: digest };
    let decoder = Decoder::uncompressed(Chunks(tar.to_vec().into()), Algorithm::Sha256);
    extract(decoder, target, split, &Limits::default(), &expected)
}

fn directory(dir: &TempDir, names: &[&str]) -> Dir {
    names.iter().for_each(|name| fs::create_dir(dir.path().join(name)).unwrap());
    Dir::open(dir.path()).unwrap()
}

/// Extracts the layer into a directory, and commits it without parents unless it links to lower layers.
fn as_directory(tar: &[u8], dir: &TempDir) -> Result<(Extracted, BTreeMap<Vec<u8>, Found>), extract::Error> {
    let top = directory(dir, &["diff", "replaced"]);
    let replaced = top.open_dir(b"replaced").unwrap();
    let rights = Rights { ids: process::ids(), trusted: true, rootless: false };
    let target = overlay::apply::Target {
        diff: top.open_dir(b"diff").unwrap(),
        replaced: &replaced,
        space: &NoAccounting,
        rights,
        cores: &Cores::of_process(),
        written: &AtomicU64::new(0),
        keep_replaced: true,
    };
    let split = TarSplitTarget { dir: &top, name: b"split" };
    let extracted = run(tar, Target::Overlay(target), Some(split))?;
    fs::remove_dir_all(dir.path().join("replaced")).unwrap();
    let mut applied = extracted.applied.clone();
    applied.lower_links.clear();
    overlay::settle::settle(
        top.open_dir(b"diff").unwrap(),
        &mut applied,
        &Lower::new([]),
        &NoAccounting,
        rights,
    )?;
    let mut tree = found::scan(&dir.path().join("diff"));
    // The time of a whiteout is not visible.
    let whiteout = Kind::Device(FileType::CharDevice, (0, 0));
    for found in tree.values_mut().filter(|found| found.kind == whiteout) {
        found.mtime = Timestamp::default();
    }
    Ok((Extracted { applied: Applied { lost: applied.lost, ..extracted.applied }, ..extracted }, tree))
}

fn target<'a>(image: Image, top: &'a Dir, written: &'a AtomicU64) -> Target<'a> {
    Target::Erofs(erofs_sink::apply::Target {
        image,
        dir: top,
        space: &NoAccounting,
        options: Options::default(),
        written,
        keep_replaced: true,
    })
}

/// Extracts the layer into an image.
fn as_image(tar: &[u8], dir: &TempDir) -> Result<Extracted, extract::Error> {
    let top = directory(dir, &[]);
    let image =
        File::options().read(true).write(true).create_new(true).open(dir.path().join("image")).unwrap();
    let split = TarSplitTarget { dir: &top, name: b"split" };
    run(tar, target(Image::New(image), &top, &AtomicU64::new(0)), Some(split))
}

/// Compares the image with the directory of the same tar.
fn compare(tar: &[u8], dir: &TempDir) -> Result<Extracted, extract::Error> {
    let image = File::open(dir.path().join("image")).unwrap();
    run(tar, target(Image::Present(image), &directory(dir, &[]), &AtomicU64::new(0)), None)
}

/// Rebuilds the tar from the image.
fn rebuilt(dir: &TempDir) -> Vec<u8> {
    let root = erofs::read::ImageNode::root(File::open(dir.path().join("image")).unwrap()).unwrap();
    let split = File::open(dir.path().join("split")).unwrap();
    let mut rebuilt = Rebuilt::new(split, StoredDir::Image(root));
    let mut tar = Vec::new();
    while let Some(chunk) = rebuilt.next().unwrap() {
        tar.extend_from_slice(&chunk);
    }
    tar
}

/// Checks one tar. `flip` selects a bit of the image to flip.
pub(crate) fn check(tar: &[u8], flip: u64) {
    let (directory, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    match (as_directory(tar, &directory), as_image(tar, &image)) {
        (Err(want), Err(found)) => assert_eq!(want.to_string(), found.to_string()),
        (Ok((want, tree)), Ok(found)) => {
            assert_eq!(want.applied.directories, found.applied.directories);
            assert_eq!(want.applied.lower_links, found.applied.lower_links);
            assert_eq!(want.applied.entries, found.applied.entries);
            let losses = |extracted: &Extracted| {
                let mut lost: Vec<String> =
                    extracted.applied.lost.iter().map(|lost| format!("{lost:?}")).collect();
                lost.sort();
                lost
            };
            assert_eq!(losses(&want), losses(&found));
            assert_eq!(want.tar_split_size, found.tar_split_size);
            let path = image.path().join("image");
            assert_eq!(super::fsck(&path), "");
            let mut shown = reader::scan(File::open(&path).unwrap(), usize::MAX).unwrap();
            // An opaque root affects only lower layers, and there are none here.
            shown.entry(Vec::new()).and_modify(|root| {
                root.xattrs.remove(OPAQUE_XATTR);
            });
            let lines = found::differences(&tree, &shown);
            assert!(lines.is_empty(), "{}", lines.join("\n"));
            assert!(rebuilt(&image) == tar, "the rebuilt tar differs");
            compare(tar, &image).unwrap();
            let mut bytes = fs::read(&path).unwrap();
            let bit = flip % (bytes.len() as u64 * 8);
            bytes[usize::try_from(bit / 8).unwrap()] ^= 1 << (bit % 8);
            fs::write(&path, bytes).unwrap();
            let error = compare(tar, &image).unwrap_err().to_string();
            assert!(error.contains("differs from its layer at byte"), "bit {bit}: {error}");
        }
        (Err(error), Ok(_)) => panic!("only the directory failed: {error}"),
        (Ok(_), Err(error)) => panic!("only the image failed: {error}"),
    }
}

/// One member, or something unusual.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    File(String, usize),
    Sparse(String),
    Directory(String),
    Symlink(String, String),
    HardLink(String, String),
    Device(String, u32),
    Fifo(String),
    Whiteout(String),
    Opaque(String),
    Mode(u32),
    Owner(u64, u64),
    Mtime(u64),
    Attribute(usize),
}

const ATTRIBUTES: [(&str, &[u8]); 13] = [
    ("user.one", b"1"),
    ("user.two", &[2; 700]),
    ("trusted.t", b""),
    ("security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
    ("security.capability", b"short"),
    ("com.apple.provenance", b"a Mac's"),
    ("user.", b""),
    ("system.posix_acl_access", b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x05\0\x07\0\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x05\0\xff\xff\xff\xff\x20\0\x01\0\xff\xff\xff\xff"),
    ("system.posix_acl_access", b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff\x04\0\x04\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff"),
    ("system.posix_acl_default", b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff"),
    ("system.posix_acl_access", b"\x02\0\0\0garbage"),
    ("trusted.overlay.opaque", b"y"),
    ("security.selinux", b"a label"),
];

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![4 => "[ab]", 2 => "[cd]", 1 => Just("link".to_owned())];
    prop::collection::vec(name, 1..4).prop_map(|names| names.join("/"))
}

pub(crate) fn piece() -> impl Strategy<Value = Piece> {
    let target = prop_oneof![
        path(),
        path().prop_map(|path| format!("/{path}")),
        path().prop_map(|path| format!("../{path}")),
        Just(".".to_owned())
    ];
    prop_oneof![
        6 => (path(), prop_oneof![Just(0), 1..200usize, 2900..9000usize]).prop_map(|(path, size)| Piece::File(path, size)),
        1 => path().prop_map(Piece::Sparse),
        4 => path().prop_map(Piece::Directory),
        2 => (prop_oneof![path(), Just("link".to_owned())], target).prop_map(|(path, target)| Piece::Symlink(path, target)),
        3 => (path(), path()).prop_map(|(path, target)| Piece::HardLink(path, target)),
        1 => (path(), 1..300u32).prop_map(|(path, minor)| Piece::Device(path, minor)),
        1 => path().prop_map(Piece::Fifo),
        2 => path().prop_map(Piece::Whiteout),
        1 => path().prop_map(Piece::Opaque),
        1 => (0..=0o7777u32).prop_map(Piece::Mode),
        1 => (0..70_000u64, 0..3u64).prop_map(|(uid, gid)| Piece::Owner(uid, gid)),
        1 => (0..1u64 << 31).prop_map(Piece::Mtime),
        2 => prop_oneof![8 => Just(0usize), 8 => Just(1), 8 => Just(2), 4 => Just(3), 4 => Just(5), 8 => Just(7), 8 => Just(8), 4 => Just(12), 1 => 0..ATTRIBUTES.len()].prop_map(Piece::Attribute),
    ]
}

pub(crate) fn tar(pieces: &[Piece]) -> Vec<u8> {
    let mut tar = LayerBuilder::new();
    for (n, piece) in pieces.iter().enumerate() {
        tar = match piece {
            Piece::File(path, size) => tar.file(path, vec![u8::try_from(n % 251).unwrap(); *size]),
            Piece::Sparse(path) => {
                let form = SparseForm::ALL[n % 4];
                let pieces = [(0, &b"start"[..]), (70_000, &[7; 5000]), (200_000, b"end")];
                tar.sparse(form, path, 200_010, &pieces)
            }
            Piece::Directory(path) => tar.dir(format!("{path}/")),
            Piece::Symlink(path, target) => tar.symlink(path, target),
            Piece::HardLink(path, target) => tar.hardlink(path, target),
            Piece::Device(path, minor) => tar.char_device(path, 10, *minor),
            Piece::Fifo(path) => tar.fifo(path),
            Piece::Whiteout(path) => tar.whiteout(path),
            Piece::Opaque(path) => tar.opaque(path),
            Piece::Mode(mode) => tar.mode(*mode),
            Piece::Owner(uid, gid) => tar.owner(*uid, *gid),
            Piece::Mtime(mtime) => tar.mtime(*mtime),
            Piece::Attribute(which) => tar.xattr(ATTRIBUTES[*which].0, ATTRIBUTES[*which].1),
        };
    }
    tar.tar()
}
