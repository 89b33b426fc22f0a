//! Counts the instructions for decoding and applying one small layer with valgrind. The result is the same on
//! a busy and on an idle machine, so it shows regressions that times cannot show. Prints the result without
//! judging it.
//!
//! The program counts itself: the difference between doing the work twice and once is the work alone.
//! Valgrind has no SHA instructions, so hashes run without them and are counted separately.

#![expect(clippy::print_stdout, reason = "prints the result")]

use std::io::{self, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::extract::{Expected, TarSplitTarget, Target, extract};
use larder_layer::limits::{Limits, Ratio};
use larder_layer::overlay::apply;
use larder_layer::overlay::attributes::Rights;
use larder_layer::space::NoAccounting;
use larder_model::digest::{Algorithm, Digest};
use larder_sys::{Dir, process};
use larder_testing::layer::LayerBuilder;
use tempfile::TempDir;

/// Number and size of the small files in the layer.
const SMALL: (u64, usize) = (300, 4 << 10);
/// Size of the one large file.
const LARGE: usize = 1 << 20;

struct Chunks(Bytes);

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.0.split_to((64 << 10).min(self.0.len()));
        Ok((!chunk.is_empty()).then_some(chunk))
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

/// Returns the tar of the layer, which is always the same.
fn tar() -> Vec<u8> {
    let layer = LayerBuilder::new().file("lib.so", content(1, LARGE));
    let files = (0..SMALL.0).fold(layer, |layer, n| {
        let layer = if n % 50 == 0 { layer.dir(format!("d{}/", n / 50)) } else { layer };
        layer.file(format!("d{}/file-{n}.py", n / 50), content(n + 2, SMALL.1))
    });
    files.tar()
}

/// Performs the step `what` on the layer in `dir`, the given number of times.
fn work(what: &str, dir: &Path, times: usize) -> io::Result<()> {
    let (blob, tar) = (Bytes::from(std::fs::read(dir.join("blob"))?), std::fs::read(dir.join("tar"))?);
    let digests = std::fs::read_to_string(dir.join("digests"))?;
    let mut digests = digests.lines().map(|line| line.parse::<Digest>().map_err(io::Error::other));
    let mut digest = || digests.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()));
    let expected = Expected { blob: digest()?, size: blob.len() as u64, diff_id: digest()? };
    for _ in 0..times {
        match what {
            "hash" => drop((Digest::sha256(&blob), Digest::sha256(&tar))),
            "decode" => drop(decoder(&blob).finish().map_err(io::Error::other)?),
            _ => apply(&blob, &expected)?,
        }
    }
    Ok(())
}

fn decoder(blob: &Bytes) -> Decoder<'static> {
    Decoder::new(Chunks(blob.clone()), Algorithm::Sha256, Ratio::default())
}

fn apply(blob: &Bytes, expected: &Expected) -> io::Result<()> {
    let root = TempDir::new()?;
    let dir = Dir::open(root.path())?;
    let (diff, replaced) = (dir.ensure_dir(b"diff", 0o700)?, dir.ensure_dir(b"replaced", 0o700)?);
    let target = apply::Target {
        diff,
        replaced: &replaced,
        space: &NoAccounting,
        rights: Rights { ids: process::ids(), trusted: false, rootless: true },
        // One thread does everything, so that each run does the same work.
        cores: &Cores::new(1),
        written: &AtomicU64::new(0),
        keep_replaced: true,
    };
    let split = Some(TarSplitTarget { dir: &dir, name: b"tar-split.gz" });
    extract(decoder(blob), Target::Overlay(target), split, &Limits::default(), expected)
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(())
}

/// Counts the instructions of this program while it performs `what` the given number of times.
fn count(what: &str, dir: &Path, times: usize) -> io::Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    valgrind.arg(std::env::current_exe()?).args([what, &times.to_string()]).arg(dir);
    let output = valgrind.output()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let count = report.lines().find_map(|line| line.split_once("I   refs:").or(line.split_once("I refs:")));
    let count = count.and_then(|(_, count)| count.trim().replace(',', "").parse().ok());
    count.filter(|_| output.status.success()).ok_or_else(|| io::Error::other(report.into_owned()))
}

fn report() -> io::Result<()> {
    let dir = TempDir::new()?;
    let tar = tar();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&tar)?;
    let blob = gzip.finish()?;
    std::fs::write(dir.path().join("blob"), &blob)?;
    std::fs::write(dir.path().join("tar"), &tar)?;
    let digests = format!("{}\n{}\n", Digest::sha256(&blob), Digest::sha256(&tar));
    std::fs::write(dir.path().join("digests"), digests)?;
    let of = |what| -> io::Result<u64> {
        let (twice, once) = (count(what, dir.path(), 2)?, count(what, dir.path(), 1)?);
        Ok(twice.saturating_sub(once) * 1_000_000 / tar.len() as u64)
    };
    let (hash, decode, apply) = (of("hash")?, of("decode")?, of("apply")?);
    let optimised = if cfg!(debug_assertions) { "without optimisation" } else { "optimised" };
    println!(
        "instructions per MB of tar ({optimised}), gzip, {} files of {} bytes and one of {LARGE}:",
        SMALL.0, SMALL.1
    );
    println!("  hashes, without SHA instructions  {hash:>12}");
    println!("  decompression and CRC             {:>12}", decode.saturating_sub(hash));
    println!("  tar, tar-split, files             {:>12}", apply.saturating_sub(decode));
    Ok(())
}

fn main() {
    process::clear_umask();
    let args: Vec<String> = std::env::args().collect();
    let done = match &args[1..] {
        [what, times, dir] => work(what, Path::new(dir), times.parse().unwrap_or(1)),
        _ => report(),
    };
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("skipped: valgrind is not installed ({error})")
        }
        Err(error) => {
            println!("not counted: {error}");
            std::process::exit(1);
        }
        Ok(()) => {}
    }
}
