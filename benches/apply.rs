//! Applies a tar from memory to a directory, with and without the tar-split file.
//!
//! Each iteration uses a new directory, which is removed outside of the measured time. Everything is in
//! /dev/shm, so the figures show the processor and the kernel's file layer. On an ext4 that is cleared and
//! filled again, the result would depend on how it avoids inodes that were just freed.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::extract::{Expected, TarSplitTarget, Target, extract};
use larder_layer::limits::Limits;
use larder_layer::overlay;
use larder_layer::overlay::attributes::Rights;
use larder_layer::space::Space;
use larder_model::digest::{Algorithm, Digest};
use larder_model::shortage::Shortage;
use larder_sys::{Dir, process};
use larder_testing::layer::LayerBuilder;
use tempfile::TempDir;

/// Size of a network chunk, in bytes.
const CHUNK: usize = 64 << 10;

/// Unlimited space: the pipeline benchmark measures the cost of the cap.
#[derive(Debug)]
struct Unlimited;

impl Space for Unlimited {
    fn reserve(&self, _: u64) -> Result<(), Shortage> {
        Ok(())
    }

    fn release(&self, _: u64) {}
}

struct Chunks(Bytes);

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.0.split_to(CHUNK.min(self.0.len()));
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

/// A tar and the result that extraction must give.
struct Sample {
    tar: Bytes,
    expected: Expected,
}

impl From<LayerBuilder> for Sample {
    fn from(layer: LayerBuilder) -> Self {
        let tar = Bytes::from(layer.tar());
        let digest = Digest::sha256(&tar);
        let expected = Expected { blob: digest.clone(), size: tar.len() as u64, diff_id: digest };
        Sample { tar, expected }
    }
}

/// Returns bytes that differ between files and do not repeat within one.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Creates a layer of files of 1 KiB, a hundred per directory.
fn many_small(count: u64) -> Sample {
    let mut layer = LayerBuilder::new();
    for n in 0..count {
        if n % 100 == 0 {
            layer = layer.dir(format!("d{}/", n / 100));
        }
        layer = layer.file(format!("d{}/file-{n}.py", n / 100), content(n + 1, 1 << 10));
    }
    layer.into()
}

fn few_large(count: u64, size: usize) -> Sample {
    (0..count)
        .fold(LayerBuilder::new(), |layer, n| layer.file(format!("lib{n}.so"), content(n + 1, size)))
        .into()
}

/// Creates chains of forty directories. Only the file at the end is a member.
fn deep(count: u64) -> Sample {
    let below = "/directory".repeat(40);
    (0..count)
        .fold(LayerBuilder::new(), |layer, n| layer.file(format!("{n}{below}/f"), content(n + 1, 64)))
        .into()
}

/// Creates one file with `count` hard links and as many symbolic links.
fn links(count: u64) -> Sample {
    let first = LayerBuilder::new().dir("bin/").file("bin/busybox", content(1, 1 << 20));
    (0..count)
        .fold(first, |layer, n| {
            layer.hardlink(format!("bin/hard-{n}"), "bin/busybox").symlink(format!("bin/soft-{n}"), "busybox")
        })
        .into()
}

fn fresh() -> TempDir {
    let root = TempDir::new_in("/dev/shm").expect("/dev/shm can be written");
    for name in ["diff", "replaced"] {
        std::fs::create_dir(root.path().join(name)).expect("a new directory is empty");
    }
    root
}

fn apply(sample: &Sample, root: &Path, tar_split: bool) {
    let dir = Dir::open(root).expect("it was just created");
    let replaced = dir.open_dir(b"replaced").expect("it was just created");
    let written = AtomicU64::new(0);
    let target = overlay::apply::Target {
        diff: dir.open_dir(b"diff").expect("it was just created"),
        replaced: &replaced,
        space: &Unlimited,
        rights: Rights { ids: process::ids(), trusted: true, rootless: false },
        cores: &Cores::of_process(),
        written: &written,
        keep_replaced: tar_split,
    };
    let split = tar_split.then_some(TarSplitTarget { dir: &dir, name: b"tar-split.gz" });
    let decoder = Decoder::uncompressed(Chunks(sample.tar.clone()), Algorithm::Sha256);
    let extracted = extract(decoder, Target::Overlay(target), split, &Limits::default(), &sample.expected);
    black_box(extracted.expect("the sample is whole"));
}

fn benches(criterion: &mut Criterion) {
    process::clear_umask();
    let full = !std::env::args().any(|arg| arg == "--test");
    let samples = if full {
        [
            ("many small", many_small(20_000)),
            ("few large", few_large(8, 64 << 20)),
            ("deep", deep(500)),
            ("links", links(5_000)),
        ]
    } else {
        [
            ("many small", many_small(200)),
            ("few large", few_large(2, 1 << 20)),
            ("deep", deep(5)),
            ("links", links(50)),
        ]
    };
    for (name, sample) in &samples {
        let mut group = criterion.benchmark_group(format!("apply/{name}"));
        group.throughput(Throughput::Bytes(sample.tar.len() as u64));
        group.sample_size(15).measurement_time(Duration::from_secs(6)).warm_up_time(Duration::from_secs(1));
        for (form, tar_split) in [("plain", false), ("tar-split", true)] {
            group.bench_function(form, |bencher| {
                // The directory is returned, so that it is removed outside of the measured time.
                let run = |root: TempDir| {
                    apply(sample, root.path(), tar_split);
                    root
                };
                bencher.iter_batched(fresh, run, BatchSize::PerIteration);
            });
        }
        group.finish();
    }
}

criterion_group!(apply_tars, benches);
criterion_main!(apply_tars);
