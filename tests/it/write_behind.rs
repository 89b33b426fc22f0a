//! Tests that writing content on a second thread gives the same layer as on one: the same tree, tar record,
//! space account and errors.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, io};

use bytes::Bytes;
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::extract::{Expected, TarSplitTarget, Target, extract};
use larder_layer::limits::Limits;
use larder_layer::overlay;
use larder_layer::overlay::attributes::Rights;
use larder_layer::space::Space;
use larder_model::digest::{Algorithm, Digest};
use larder_model::shortage::Shortage;
use larder_sys::{Dir, FileType, Timestamp, process};
use larder_testing::layer::LayerBuilder;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::erofs::found::{self, Found, Kind};
use crate::erofs::sink::{piece, tar};
use crate::harness::filesystem::{self, FileSystem};
use crate::harness::isolated;

/// An injected fault.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Nothing,
    /// Only this many requests for space succeed.
    Room(u64),
    /// Only this many chunks of the tar arrive.
    Chunks(u64),
}

/// An account that refuses after some number of requests.
#[derive(Debug)]
struct Counting {
    requests: AtomicU64,
    granted: u64,
    bytes: AtomicU64,
}

impl Space for Counting {
    fn reserve(&self, bytes: u64) -> Result<(), Shortage> {
        if self.requests.fetch_add(1, Ordering::Relaxed) >= self.granted {
            return Err(Shortage::bytes(bytes, 0, 0));
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

struct Chunks {
    rest: Bytes,
    left: u64,
}

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("the line was cut"))?;
        let chunk = self.rest.split_to(self.rest.len().min(3000));
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

/// All results of extracting a layer.
#[derive(Debug, PartialEq)]
struct Outcome {
    tree: BTreeMap<Vec<u8>, Found>,
    split: Vec<u8>,
    applied: String,
    reserved: u64,
    written: u64,
}

/// Extracts a tar into the empty directory `at`.
fn apply(tar: &[u8], at: &Path, cores: usize, fault: Fault) -> Result<Outcome, String> {
    for name in ["diff", "replaced"] {
        fs::create_dir(at.join(name)).unwrap();
    }
    let top = Dir::open(at).unwrap();
    let replaced = top.open_dir(b"replaced").unwrap();
    let (granted, left) = match fault {
        Fault::Nothing => (u64::MAX, u64::MAX),
        Fault::Room(granted) => (granted, u64::MAX),
        Fault::Chunks(left) => (u64::MAX, left),
    };
    let space = Counting { requests: AtomicU64::new(0), granted, bytes: AtomicU64::new(0) };
    let written = AtomicU64::new(0);
    let target = overlay::apply::Target {
        diff: top.open_dir(b"diff").unwrap(),
        replaced: &replaced,
        space: &space,
        rights: Rights { ids: process::ids(), trusted: true, rootless: false },
        cores: &Cores::new(cores),
        written: &written,
        keep_replaced: true,
    };
    let digest = Digest::sha256(tar);
    let expected = Expected { blob: digest.clone(), size: tar.len() as u64, diff_id: digest };
    let source = Chunks { rest: tar.to_vec().into(), left };
    let decoder = Decoder::uncompressed(source, Algorithm::Sha256);
    // The tar-split file is in another directory, because its writes depend on the tar alone.
    let beside = tempfile::tempdir().unwrap();
    let record = Dir::open(beside.path()).unwrap();
    let split = Some(TarSplitTarget { dir: &record, name: b"split" });
    let extracted = extract(decoder, Target::Overlay(target), split, &Limits::default(), &expected);
    let extracted = extracted.map_err(|error| error.to_string())?;
    let mut tree = found::scan(&at.join("diff"));
    // The times of directories are set later, and a whiteout's time is not visible.
    let whiteout = Kind::Device(FileType::CharDevice, (0, 0));
    for found in tree.values_mut().filter(|found| found.kind == Kind::Directory || found.kind == whiteout) {
        found.mtime = Timestamp::default();
    }
    Ok(Outcome {
        tree,
        split: fs::read(beside.path().join("split")).unwrap(),
        applied: format!("{:?} {:?}", extracted.applied, extracted.tar_split_size),
        reserved: space.bytes.into_inner(),
        written: written.into_inner(),
    })
}

fn cases(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[case]
fn one_thread_and_two_agree() {
    isolated(&[], || {
        let fault = prop_oneof![
            2 => Just(Fault::Nothing),
            1 => (0..60u64).prop_map(Fault::Room),
            1 => (0..30u64).prop_map(Fault::Chunks),
        ];
        let layers = (prop::collection::vec(piece(), 1..80), fault);
        let result = cases(192).run(&layers, |(pieces, fault)| {
            let tar = tar(&pieces);
            let outcomes = [1, 2].map(|cores| {
                let dir = tempfile::tempdir().unwrap();
                apply(&tar, dir.path(), cores, fault)
            });
            prop_assert_eq!(&outcomes[0], &outcomes[1]);
            Ok(())
        });
        result.unwrap();
    });
}

/// More files than all batches hold, with sizes around the limit for the second thread. Links describe some
/// again.
#[case]
fn many_files_agree() {
    isolated(&[], || {
        let sizes = [0, 1, 511, 4096, 70_000, 128 << 10, (128 << 10) + 1, 300_000];
        let layer = (0..1500usize).fold(LayerBuilder::new(), |layer, n| {
            let (path, size) = (format!("d{}/{n}", n % 7), sizes[n * n % 11 % sizes.len()]);
            let layer = layer.mode([0o644, 0o4755, 0o2750][n % 3]).owner((n % 5) as u64, 0);
            let layer = layer.file(&path, vec![u8::try_from(n % 251).unwrap(); size]);
            match n % 97 {
                0 => layer.owner(7, 7).mode(0o600).hardlink(format!("link-{n}"), path),
                1 => layer.file(path, "again"),
                _ => layer,
            }
        });
        let tar = layer.tar();
        let outcomes = [1, 2].map(|cores| {
            let dir = tempfile::tempdir().unwrap();
            apply(&tar, dir.path(), cores, Fault::Nothing).unwrap()
        });
        assert_eq!(outcomes[0].tree.len(), 1500 + 7 + 1 + 1500usize.div_ceil(97));
        assert!(outcomes[0] == outcomes[1]);
    });
}

/// The second thread reaches the end of the file system. The error still names the first file that does not
/// fit.
#[case]
fn the_first_file_that_does_not_fit_is_named() {
    isolated(&[], || {
        for pages in [100, 250, 600] {
            let layer = (0..2000usize).fold(LayerBuilder::new(), |layer, n| {
                layer.file(format!("d{}/{n}", n % 7), vec![b'x'; 1 + n % 9000])
            });
            let tar = layer.tar();
            let errors = [1, 2].map(|cores| {
                let disk = FileSystem::new(filesystem::Kind::Tmpfs, pages * 4096);
                apply(&tar, &disk.path(), cores, Fault::Nothing).unwrap_err()
            });
            assert!(errors[0].starts_with("writing \"d"), "{}", errors[0]);
            assert!(errors[0].contains("No space left"), "{}", errors[0]);
            assert_eq!(errors[0], errors[1]);
        }
    });
}
