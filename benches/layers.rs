//! Unpacks a compressed layer from memory to a directory tree and to an EROFS image. For comparison, measures
//! the lower bound of the image (decompressing, hashing both sides, one sequential write) and Debian's
//! mkfs.erofs on the tree.
//!
//! All output is in the directory `LARDER_BENCH_DIR` (default /dev/shm), in a new subdirectory each time. The
//! variants take turns, so that other load affects all of them. Times end when the work ends (`work`) and
//! when the file system is synced (`synced`).

#![expect(clippy::print_stdout, reason = "prints the result table")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::erofs_sink::apply::Image;
use larder_layer::extract::{Expected, TarSplitTarget, Target, extract};
use larder_layer::limits::{Limits, Ratio};
use larder_layer::lower::Lower;
use larder_layer::overlay::attributes::Rights;
use larder_layer::space::NoAccounting;
use larder_layer::{erofs, erofs_sink, overlay};
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_sys::{Dir, process};
use larder_testing::layer::LayerBuilder;
use tempfile::TempDir;

/// Size of a network chunk, in bytes.
const CHUNK: usize = 64 << 10;

struct Chunks(Bytes);

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.0.split_to(CHUNK.min(self.0.len()));
        Ok((!chunk.is_empty()).then_some(chunk))
    }
}

struct Sample {
    name: &'static str,
    files: u64,
    blob: Bytes,
    expected: Expected,
    size: u64,
}

impl Sample {
    fn new(name: &'static str, files: u64, layer: LayerBuilder) -> Self {
        let tar = layer.tar();
        let diff_id = Digest::sha256(&tar);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&tar).expect("memory can be written");
        let blob = Bytes::from(gzip.finish().expect("memory can be written"));
        let expected = Expected { blob: Digest::sha256(&blob), size: blob.len() as u64, diff_id };
        Sample { name, files, size: tar.len() as u64, blob, expected }
    }

    fn decoder(&self) -> Decoder<'static> {
        Decoder::new(Chunks(self.blob.clone()), Algorithm::Sha256, Ratio::default())
    }
}

/// Returns text that deflate compresses to half its size, different for each seed.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes().map(|byte| b'a' + (byte & 15))
    });
    words.flatten().take(length).collect()
}

/// Creates a layer of files of 1 KiB, a hundred per directory.
fn many_small(count: u64) -> LayerBuilder {
    (0..count).fold(LayerBuilder::new(), |layer, n| {
        let layer = if n % 100 == 0 { layer.dir(format!("d{}/", n / 100)) } else { layer };
        layer.file(format!("d{}/file-{n}.py", n / 100), content(n + 1, 1 << 10))
    })
}

fn few_large(count: u64, size: usize) -> LayerBuilder {
    (0..count).fold(LayerBuilder::new(), |layer, n| layer.file(format!("lib{n}.so"), content(n + 1, size)))
}

/// Variants of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Overlay,
    /// Overlay with hashing on another core.
    OverlayParallelHash,
    Erofs,
    /// EROFS without the tar-split file.
    ErofsOnly,
    /// Lower bound: only writes the bytes of the tar to one file.
    LowerBound,
    Mkfs,
}

const FORMS: [(Form, &str); 6] = [
    (Form::Overlay, "overlay sink"),
    (Form::OverlayParallelHash, "overlay sink, parallel hashing"),
    (Form::Erofs, "erofs sink"),
    (Form::ErofsOnly, "erofs sink, no tar-split"),
    (Form::LowerBound, "decompress, 2 x sha256, one write"),
    (Form::Mkfs, "mkfs.erofs on the tree"),
];

fn run(form: Form, sample: &Sample, root: &Path) {
    let dir = Dir::open(root).expect("it was just created");
    let written = AtomicU64::new(0);
    let split = || Some(TarSplitTarget { dir: &dir, name: b"tar-split.gz" });
    match form {
        Form::Overlay | Form::OverlayParallelHash => {
            let decoder = match form {
                Form::OverlayParallelHash => sample.decoder().with_cores(Cores::new(1)),
                _ => sample.decoder(),
            };
            let replaced = dir.ensure_dir(b"replaced", 0o700).expect("a new directory is empty");
            let diff = || dir.ensure_dir(b"diff", 0o700).expect("a new directory is empty");
            let rights = Rights { ids: process::ids(), trusted: true, rootless: false };
            let target = overlay::apply::Target {
                diff: diff(),
                replaced: &replaced,
                space: &NoAccounting,
                rights,
                cores: &Cores::of_process(),
                written: &written,
                keep_replaced: true,
            };
            let target = Target::Overlay(target);
            let extracted = extract(decoder, target, split(), &Limits::default(), &sample.expected);
            let mut applied = extracted.expect("the sample is whole").applied;
            overlay::settle::settle(diff(), &mut applied, &Lower::new([]), &NoAccounting, rights)
                .expect("there are no lower layers");
        }
        Form::Erofs | Form::ErofsOnly => {
            let image = File::options().read(true).write(true).create_new(true).open(root.join("image"));
            let target = erofs_sink::apply::Target {
                image: Image::New(image.expect("a new directory is empty")),
                dir: &dir,
                space: &NoAccounting,
                options: erofs::Options::of(&sample.expected.diff_id),
                written: &written,
                keep_replaced: form == Form::Erofs,
            };
            let target = Target::Erofs(target);
            let split = split().filter(|_| form == Form::Erofs);
            extract(sample.decoder(), target, split, &Limits::default(), &sample.expected)
                .expect("the sample is whole");
        }
        Form::LowerBound => {
            let mut out = File::create_new(root.join("tar")).expect("a new directory is empty");
            let mut decoder = sample.decoder();
            let mut buffer = vec![0; 256 << 10];
            loop {
                let n = io::Read::read(&mut decoder, &mut buffer).expect("the sample is whole");
                if n == 0 {
                    break;
                }
                out.write_all(&buffer[..n]).expect("there is space");
            }
            decoder.finish().expect("the sample is whole");
        }
        Form::Mkfs => {
            let mut mkfs = Command::new("mkfs.erofs");
            mkfs.arg(root.join("image")).arg(root.join("diff"));
            let status = mkfs.stdout(Stdio::null()).stderr(Stdio::null()).status();
            assert!(status.expect("erofs-utils are installed").success());
        }
    }
}

/// Returns the processor time of this process and its children, in steps of a hundredth of a second
/// (proc_pid_stat(5)).
fn processor_time() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

fn measure(sample: &Sample, base: &Path, runs: usize) {
    println!(
        "\n{}: {} files, tar {} bytes, blob {} bytes, {} runs",
        sample.name,
        sample.files,
        sample.size,
        sample.blob.len(),
        runs
    );
    println!(
        "| form | work s | cpu s | synced s | all work s | entries/s | MB/s of tar |\n|---|---|---|---|---|---|---|"
    );
    let mut times: Vec<Vec<(Duration, Duration, Duration)>> = vec![Vec::new(); FORMS.len()];
    for _ in 0..runs {
        for ((form, _), times) in FORMS.iter().zip(&mut times) {
            let root = TempDir::new_in(base).expect("the directory can be written");
            if *form == Form::Mkfs {
                run(Form::Overlay, sample, root.path());
            }
            let dir = Dir::open(root.path()).expect("it was just created");
            dir.sync_file_system().expect("a local disk can be synced");
            let (began, cpu) = (Instant::now(), processor_time());
            run(*form, sample, root.path());
            let (work, cpu) = (began.elapsed(), processor_time().saturating_sub(cpu));
            dir.sync_file_system().expect("a local disk can be synced");
            times.push((work, cpu, began.elapsed()));
        }
    }
    for ((_, name), times) in FORMS.iter().zip(times) {
        let work = median(times.iter().map(|(work, ..)| *work).collect());
        let cpu = median(times.iter().map(|(_, cpu, _)| *cpu).collect());
        let synced = median(times.iter().map(|(.., synced)| *synced).collect());
        let all: Vec<String> = times.iter().map(|(work, ..)| format!("{:.2}", work.as_secs_f64())).collect();
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (entries, bytes) = (sample.files as f64 / work, sample.size as f64 / 1e6 / work);
        println!(
            "| {name} | {work:.3} | {cpu:.2} | {synced:.3} | {} | {entries:.0} | {bytes:.0} |",
            all.join(" ")
        );
    }
}

/// A tar of small files that is generated while it is read.
struct Generated {
    next: u64,
    count: u64,
}

impl ChunkSource for Generated {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.next > self.count {
            return Ok(None);
        }
        let mut chunk = Vec::with_capacity(100 << 10);
        while chunk.len() < CHUNK && self.next < self.count {
            let path =
                format!("usr/lib/node_modules/package-{}/dist/module-{}.js", self.next / 100, self.next);
            let mut file = LayerBuilder::new().file(path, content(self.next + 1, 300)).tar();
            file.truncate(1024);
            chunk.extend(file);
            self.next += 1;
        }
        if self.next == self.count {
            chunk.extend([0; 1024]);
            self.next += 1;
        }
        Ok(Some(chunk.into()))
    }
}

fn status(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

/// Measures the memory of the sink for `files` small files.
fn memory(files: u64, base: &Path) {
    let root = TempDir::new_in(base).expect("the directory can be written");
    let dir = Dir::open(root.path()).expect("it was just created");
    let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0);
    let mut source = Generated { next: 0, count: files };
    while let Some(chunk) = source.next().expect("the source is in memory") {
        hasher.update(&chunk);
        size += chunk.len() as u64;
    }
    let diff_id = hasher.finish();
    let before = status("VmHWM");
    let image = File::options().read(true).write(true).create_new(true).open(root.path().join("image"));
    let target = erofs_sink::apply::Target {
        image: Image::New(image.expect("a new directory is empty")),
        dir: &dir,
        space: &NoAccounting,
        options: erofs::Options::of(&diff_id),
        written: &AtomicU64::new(0),
        keep_replaced: true,
    };
    let decoder = Decoder::uncompressed(Generated { next: 0, count: files }, Algorithm::Sha256);
    let split = Some(TarSplitTarget { dir: &dir, name: b"tar-split.gz" });
    let expected = Expected { blob: diff_id.clone(), size, diff_id };
    extract(decoder, Target::Erofs(target), split, &Limits::default(), &expected)
        .expect("the source is in memory");
    let after = status("VmHWM");
    println!(
        "{files} small files: peak {} MiB, {} MiB before, {} bytes per file",
        after >> 10,
        before >> 10,
        (after - before) * 1024 / files
    );
}

fn main() {
    process::clear_umask();
    let full = !std::env::args().any(|arg| arg == "--test");
    let base = std::env::var_os("LARDER_BENCH_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let runs = if full { 5 } else { 1 };
    memory(if full { 1_000_000 } else { 1000 }, &base);
    let small = if full { 60_000 } else { 200 };
    measure(&Sample::new("many small", small, many_small(small)), &base, runs);
    let large = if full { 64 << 20 } else { 1 << 20 };
    measure(&Sample::new("few large", 8, few_large(8, large)), &base, runs);
}
