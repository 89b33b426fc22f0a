//! Images of the EROFS writer, checked with the kernel and Debian's fsck.erofs.

pub(crate) mod found;
mod model;
mod random;
mod reader;
pub(crate) mod sink;

use std::cell::Cell;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use larder_layer::erofs::read::ImageNode;
use larder_layer::erofs::{InodeId, Label, Options, Summary, TreeError, TreeObserver, Writer};
use larder_layer::metadata::Metadata;
use larder_layer::space::NoAccounting;
use larder_layer::tar::Region;
use larder_sys::{Dir, process};
use nix::unistd::{Whence, lseek};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use self::found::{differences, scan};
use self::model::{Model, Node};
use crate::harness::filesystem::unmount;
use crate::harness::{Need, isolated, succeed};

const FSCK: Need = Need::Program("fsck.erofs");

fn plain() -> Metadata {
    Metadata { mode: 0o644, ..Metadata::implied() }
}

fn writer(dir: &TempDir) -> Writer<'static> {
    named_writer(dir, "image")
}

fn named_writer(dir: &TempDir, name: &str) -> Writer<'static> {
    let image = File::create_new(dir.path().join(name)).unwrap();
    let options =
        Options { uuid: *b"0123456789abcdef", label: Label::new("test").unwrap(), ..Options::default() };
    Writer::new(image, &Dir::open(dir.path()).unwrap(), &NoAccounting, options).unwrap()
}

/// Finishes the image, checks it with fsck.erofs, and compares the kernel's view of it with the model.
fn check(dir: &TempDir, model: Model<'_>) -> Summary {
    let (expected, writer) = model.finish();
    let summary = writer.finish().unwrap();
    let image = dir.path().join("image");
    assert_eq!(fs::metadata(&image).unwrap().len(), summary.size);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file is left next to the image");
    assert_eq!(fsck(&image), "");
    let lines = differences(&expected, &reader::scan(File::open(&image).unwrap(), usize::MAX).unwrap());
    assert!(lines.is_empty(), "Larder's own reader: {}", lines.join("\n"));
    mounted(&image, |root| {
        let lines = differences(&expected, &scan(root));
        assert!(lines.is_empty(), "{}", lines.join("\n"));
        copy(dir, root, "copy");
    });
    // An image of the mounted tree shows the same, and an image of that is identical byte by byte.
    mounted(&dir.path().join("copy"), |root| {
        let lines = differences(&expected, &scan(root));
        assert!(lines.is_empty(), "{}", lines.join("\n"));
        copy(dir, root, "again");
    });
    let [copy, again] = ["copy", "again"].map(|name| fs::read(dir.path().join(name)).unwrap());
    assert!(copy == again, "the copies differ: {} and {} bytes", copy.len(), again.len());
    summary
}

struct Unwatched;

impl TreeObserver for Unwatched {
    fn advance(&mut self, _: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Writes an image of the tree at `root`.
fn copy(dir: &TempDir, root: &Path, name: &str) {
    let mut writer = named_writer(dir, name);
    writer.tree(Dir::open(root).unwrap(), &mut Unwatched).unwrap();
    writer.finish().unwrap();
    assert_eq!(fsck(&dir.path().join(name)), "");
}

/// Returns the errors that fsck.erofs finds. The exit code alone is not reliable: version 1.5 returns 0 for a
/// bad checksum.
pub(crate) fn fsck(image: &Path) -> String {
    let output = Command::new("fsck.erofs").arg(image).output().unwrap();
    let [out, errors] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if output.status.success() { out + &errors } else { format!("{}: {out}{errors}", output.status) }
}

/// Runs `look` on the mounted image.
fn mounted(image: &Path, look: impl FnOnce(&Path)) {
    let root = tempfile::tempdir().unwrap();
    succeed(Command::new("mount").args(["-t", "erofs", "-o", "loop,ro"]).arg(image).arg(root.path()));
    look(root.path());
    unmount(root.path());
}

#[case]
fn trees_of_all_kinds() {
    isolated(&[FSCK, Need::Erofs], || {
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let steps = prop::collection::vec(random::step(), 1..60);
        let result = runner.run(&steps, |steps| {
            let dir = tempfile::tempdir().unwrap();
            let mut model = Model::new(writer(&dir));
            steps.iter().for_each(|step| random::apply(step, &mut model));
            check(&dir, model);
            Ok(())
        });
        result.unwrap();
    });
}

#[case]
fn names_in_the_order_of_their_bytes() {
    isolated(&[FSCK, Need::Erofs], || {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::new(writer(&dir));
        let bytes = (1..=255u8).filter(|byte| *byte != b'/');
        let singles = bytes.clone().filter(|byte| *byte != b'.').map(|byte| vec![byte]);
        let dots = bytes.flat_map(|byte| [vec![b'.', byte], vec![b'.', b'.', byte], vec![byte, b'.']]);
        let many = (0..20_000u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761)).into_bytes());
        for name in singles.chain(dots).chain(many).filter(|name| *name != b"..") {
            model.make(0, &name, plain(), Node::File(name.clone()));
        }
        check(&dir, model);
    });
}

/// Returns the start and the end of each run of data in a file.
fn data(file: &File) -> Vec<(i64, i64)> {
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Ok(start) = lseek(file, at, Whence::SeekData) {
        at = lseek(file, start, Whence::SeekHole).unwrap();
        runs.push((start, at));
    }
    runs
}

#[case]
fn holes_stay_holes() {
    const TIB: u64 = 1 << 40;
    isolated(&[FSCK, Need::Erofs], || {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(&dir);
        let mut make = |name: &[u8], size, map: &[(u64, u64)]| {
            let map: Vec<Region> =
                map.iter().map(|(offset, length)| Region { offset: *offset, length: *length }).collect();
            let mut body = writer.sparse(InodeId::ROOT, name, &plain(), size, &map).unwrap();
            for (n, region) in map.iter().enumerate() {
                body.write_at(
                    region.offset,
                    &vec![u8::try_from(n).unwrap() + 1; usize::try_from(region.length).unwrap()],
                )
                .unwrap();
            }
            body.end().unwrap();
        };
        make(b"nothing", TIB, &[]);
        make(b"ends", TIB, &[(0, 1), (TIB - 1, 1)]);
        make(b"blocks", 1 << 20, &[(8192, 4096), (65536, 8192)]);
        make(b"odd", (1 << 20) + 5, &[(8000, 300), ((1 << 20) + 1, 4)]);
        let summary = writer.finish().unwrap();
        assert!(summary.size < 16 << 20, "{summary:?}");
        let image = dir.path().join("image");
        assert_eq!(fsck(&image), "");
        mounted(&image, |root| {
            let open = |name: &str| File::open(root.join(name)).unwrap();
            assert_eq!(data(&open("nothing")), []);
            assert_eq!(data(&open("blocks")), [(8192, 12288), (65536, 73728)]);
            assert_eq!(data(&open("odd")), [(4096, 12288), (1 << 20, (1 << 20) + 5)]);
            let mut odd = vec![0; (1 << 20) + 5];
            odd[8000..8300].fill(1);
            odd[(1 << 20) + 1..].fill(2);
            assert_eq!(fs::read(root.join("odd")).unwrap(), odd);
            let ends = open("ends");
            assert_eq!(ends.metadata().unwrap().size(), TIB);
            for (at, want) in [(0, [1, 0]), (TIB / 2, [0, 0]), (TIB - 2, [0, 2])] {
                let mut bytes = [9; 2];
                ends.read_exact_at(&mut bytes, at).unwrap();
                assert_eq!(bytes, want, "{at}");
            }
        });
    });
}

#[case]
fn a_file_of_more_than_four_gibibytes() {
    const PIECE: usize = 1 << 20;
    let piece = |n: u64| n.to_le_bytes().repeat(PIECE / 8);
    isolated(&[FSCK, Need::Erofs], move || {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = writer(&dir);
        let mut body = writer.file(InodeId::ROOT, b"large", &plain()).unwrap();
        (0..4097).for_each(|n| body.write(&piece(n)).unwrap());
        body.write(b"and a tail").unwrap();
        body.end().unwrap();
        writer.finish().unwrap();
        let image = dir.path().join("image");
        assert_eq!(fsck(&image), "");
        mounted(&image, |root| {
            let large = File::open(root.join("large")).unwrap();
            assert_eq!(large.metadata().unwrap().size(), 4097 * PIECE as u64 + 10);
            for n in [0, 1, 2048, 4095, 4096] {
                let mut bytes = vec![0; PIECE];
                large.read_exact_at(&mut bytes, n * PIECE as u64).unwrap();
                assert!(bytes == piece(n), "{n}");
            }
            let mut tail = [0; 10];
            large.read_exact_at(&mut tail, 4097 * PIECE as u64).unwrap();
            assert_eq!(&tail, b"and a tail");
        });
    });
}

#[case]
fn a_damaged_superblock_is_refused() {
    isolated(&[FSCK, Need::Erofs], || {
        let dir = tempfile::tempdir().unwrap();
        Model::new(writer(&dir)).finish().1.finish().unwrap();
        let path = dir.path().join("image");
        assert_eq!(fsck(&path), "");
        let image = File::options().read(true).write(true).open(&path).unwrap();
        // Any offset after it, up to the end of the first block, which contains the root inode.
        for at in [1024 + 64, 1024 + 127, 1160, 4095] {
            let mut byte = [0];
            image.read_exact_at(&mut byte, at).unwrap();
            image.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let text = fsck(&path);
            assert!(text.contains("chksum"), "{at}: {text}");
            image.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(fsck(&path), "");
    });
}

/// A source that omits names, and stops after some bytes.
struct PartialSource {
    left: u64,
}

impl TreeObserver for PartialSource {
    fn is_skipped(&self, path: &[u8]) -> bool {
        path == b"d/out" || path == b"directory-out"
    }

    fn advance(&mut self, bytes: u64) -> ControlFlow<()> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }
    }
}

#[case]
fn the_image_of_a_directory() {
    isolated(&[FSCK, Need::Erofs], || {
        let dir = tempfile::tempdir().unwrap();
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::create_dir_all(at("d/out")).unwrap();
        fs::create_dir_all(at("directory-out/below")).unwrap();
        fs::write(at("directory-out/below/file"), "left out").unwrap();
        fs::write(at("d/file"), "content").unwrap();
        fs::hard_link(at("d/file"), at("a second name")).unwrap();
        // One of its names is outside the image.
        fs::hard_link(at("d/file"), at("directory-out/third")).unwrap();
        let holes = File::create(at("holes")).unwrap();
        holes.set_len(8 << 30).unwrap();
        holes.write_all_at(b"in the middle", 4 << 30).unwrap();
        rustix::fs::lsetxattr(at("d"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
            .unwrap();

        let summary = {
            let mut writer = writer(&dir);
            writer.tree(Dir::open(top.path()).unwrap(), &mut PartialSource { left: 1 << 20 }).unwrap();
            writer.finish().unwrap()
        };
        assert!(summary.size < 1 << 20, "{summary:?}");
        mounted(&dir.path().join("image"), |root| {
            let found = scan(root);
            let names: Vec<String> = found.keys().map(|path| path.escape_ascii().to_string()).collect();
            assert_eq!(names, ["", "a second name", "d", "d/file", "holes"]);
            assert_eq!(found[&b"d/file"[..]].first_name, b"a second name");
            assert_eq!(found[&b"d/file"[..]].links, 2);
            assert_eq!(found[&b"d"[..]].xattrs[&b"trusted.overlay.opaque"[..]], b"y");
            let mut original = scan(top.path());
            assert_eq!(found[&b"holes"[..]], original.remove(&b"holes"[..]).unwrap());
        });

        let mut stopped = named_writer(&dir, "stopped");
        let result = stopped.tree(Dir::open(top.path()).unwrap(), &mut PartialSource { left: 10 });
        assert!(matches!(result, Err(TreeError::Stopped)));
    });
}

#[case]
fn a_damaged_image_ends_the_reading_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::new(writer(&dir));
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec(random::step(), 40..60);
    let steps = steps.new_tree(&mut runner).unwrap().current();
    steps.iter().for_each(|step| random::apply(step, &mut model));
    model.finish().1.finish().unwrap();
    let bytes = fs::read(dir.path().join("image")).unwrap();
    let metadata = ImageNode::root(File::open(dir.path().join("image")).unwrap());
    assert!(metadata.is_ok());
    let damaged =
        File::options().read(true).write(true).create_new(true).open(dir.path().join("damaged")).unwrap();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let blocks = bytes.len() / 4096;
    // Most of the metadata is in the last third.
    let place = prop_oneof![(0..blocks), (blocks * 2 / 3..blocks)];
    let damage = prop::collection::vec((place, 0..4096usize, any::<u8>()), 1..20);
    let (refused, read) = (Cell::new(0), Cell::new(0));
    let result = runner.run(&damage, |damage| {
        let mut bytes = bytes.clone();
        for (block, offset, byte) in damage {
            bytes[block * 4096 + offset] = byte;
        }
        // Without a correct checksum, the reader would stop before it reaches the root.
        let sum = crc(&bytes[1024..4096]);
        bytes[1028..1032].copy_from_slice(&sum);
        damaged.write_all_at(&bytes, 0).unwrap();
        match reader::scan(damaged.try_clone().unwrap(), 5000) {
            Ok(_) => read.set(read.get() + 1),
            Err(_) => refused.set(refused.get() + 1),
        }
        Ok(())
    });
    result.unwrap();
    assert!(refused.get() > 0 && read.get() > 0, "{refused:?} {read:?}");
}

/// Returns the checksum of a superblock, with an independent table.
fn crc(block: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (at, byte) in block.iter().enumerate() {
        // The checksum field itself counts as zeros.
        crc ^= if (4..8).contains(&at) { 0 } else { u32::from(*byte) };
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    crc.to_le_bytes()
}

#[case]
fn both_forms_of_a_layer_agree() {
    isolated(&[FSCK, Need::Erofs], || {
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
        // For this thread alone, which has its own file system context.
        process::clear_umask();
        // A case that a random run once found.
        let found = [sink::Piece::Attribute(10), sink::Piece::Symlink("a".into(), "a".into())];
        sink::check(&sink::tar(&found), 0);
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let tars = (prop::collection::vec(sink::piece(), 1..25), any::<u64>());
        let result = runner.run(&tars, |(pieces, flip)| {
            sink::check(&sink::tar(&pieces), flip);
            Ok(())
        });
        result.unwrap();
    });
}
