//! Writes EROFS images from memory: throughput of content, and memory per entry.
//!
//! Images are in /dev/shm, so the figures show processor time and copying. Images are removed outside of the
//! measured time.

#![expect(clippy::print_stderr, reason = "criterion cannot report memory")]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufWriter, Read as _, Write as _};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use larder_layer::erofs::{InodeId, Options, Summary, Writer};
use larder_layer::metadata::Metadata;
use larder_layer::space::NoAccounting;
use larder_sys::{Dir, Timestamp};
use tempfile::TempDir;

/// A tree of `files` files of `size` bytes, a hundred per directory.
#[derive(Clone, Copy, Debug)]
struct Tree {
    files: u32,
    size: usize,
}

impl Tree {
    fn bytes(self) -> u64 {
        u64::from(self.files) * self.size as u64
    }

    /// Writes everything except the end of the image.
    fn write(self, dir: &TempDir, content: &[u8]) -> Writer<'static> {
        let image = File::create(dir.path().join("image")).expect("the directory is empty");
        let scratch = Dir::open(dir.path()).expect("it was just created");
        let mut writer =
            Writer::new(image, &scratch, &NoAccounting, Options::default()).expect("/dev/shm has space");
        let mut metadata = Metadata { mode: 0o644, ..Metadata::implied() };
        let mut directory = InodeId::ROOT;
        for n in 0..self.files {
            metadata.mtime = Timestamp { sec: 1_700_000_000 + i64::from(n), nsec: n };
            if n % 100 == 0 {
                let name = format!("directory-{}", n / 100);
                directory =
                    writer.directory(InodeId::ROOT, name.as_bytes(), &metadata).expect("the name is new");
            }
            let name = format!("module-{n}.generated.js");
            let mut body = writer.file(directory, name.as_bytes(), &metadata).expect("the name is new");
            for piece in content[..self.size].chunks(64 << 10) {
                body.write(piece).expect("/dev/shm has space");
            }
            body.end().expect("/dev/shm has space");
        }
        writer
    }

    fn image(self, dir: &TempDir, content: &[u8]) -> Summary {
        self.write(dir, content).finish().expect("/dev/shm has space")
    }
}

fn fresh() -> TempDir {
    TempDir::new_in("/dev/shm").expect("/dev/shm can be written")
}

/// Returns a line of /proc/self/status, in bytes.
fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Measures the memory per entry, and the peak when the image is finished.
fn memory(files: u32) {
    let dir = fresh();
    let content = vec![b'x'; 200];
    let before = status("VmRSS");
    let writer = Tree { files, size: 200 }.write(&dir, &content);
    let each = (status("VmRSS") - before) / u64::from(files);
    writer.finish().expect("/dev/shm has space");
    let peak = status("VmHWM") >> 20;
    eprintln!("erofs/memory: {files} files: {each} bytes per file, peak {peak} MiB");
}

fn benches(criterion: &mut Criterion) {
    let full = !std::env::args().any(|arg| arg == "--test");
    memory(if full { 1_000_000 } else { 1000 });
    let trees = if full {
        [
            ("many small", Tree { files: 60_000, size: 1000 }),
            ("many medium", Tree { files: 20_000, size: 9000 }),
            ("few large", Tree { files: 8, size: 64 << 20 }),
        ]
    } else {
        [
            ("many small", Tree { files: 200, size: 1000 }),
            ("many medium", Tree { files: 20, size: 9000 }),
            ("few large", Tree { files: 2, size: 1 << 20 }),
        ]
    };
    for (name, tree) in trees {
        let content = vec![b'x'; tree.size];
        let mut group = criterion.benchmark_group("erofs");
        group.throughput(Throughput::Bytes(tree.bytes()));
        group.sample_size(15).measurement_time(Duration::from_secs(6)).warm_up_time(Duration::from_secs(1));
        group.bench_function(name, |bencher| {
            let run = |dir: TempDir| {
                black_box(tree.image(&dir, &content));
                dir
            };
            bencher.iter_batched(fresh, run, BatchSize::PerIteration);
        });
        group.finish();
    }
}

/// Measures only the buffering of the tails of many small files: they are written to a file in order and read
/// back.
fn tails(criterion: &mut Criterion) {
    let full = !std::env::args().any(|arg| arg == "--test");
    let files = if full { 60_000 } else { 200 };
    let tail = vec![b'x'; 1000];
    let mut group = criterion.benchmark_group("erofs");
    group.throughput(Throughput::Bytes(files * tail.len() as u64));
    group.sample_size(15).measurement_time(Duration::from_secs(6)).warm_up_time(Duration::from_secs(1));
    group.bench_function("tails only", |bencher| {
        let run = |dir: TempDir| {
            let path = dir.path().join("tails");
            let file = File::create_new(&path).expect("the directory is empty");
            let mut out = BufWriter::with_capacity(256 << 10, file);
            (0..files).for_each(|_| out.write_all(&tail).expect("/dev/shm has space"));
            out.flush().expect("/dev/shm has space");
            let mut buffer = vec![0; 256 << 10];
            let mut file = File::open(path).expect("it was just written");
            while file.read(&mut buffer).expect("it was just written") > 0 {
                black_box(&buffer);
            }
            dir
        };
        bencher.iter_batched(fresh, run, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(images, benches, tails);
criterion_main!(images);
