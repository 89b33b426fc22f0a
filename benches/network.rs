//! One large layer over networks that are slow in parts: the time, the bytes that were sent twice, and the
//! memory, each against a network without faults.
//!
//! `cargo bench --features testing --bench network [RUNS]`. Set `LARDER` to measure another program.
//!
//! The registry is the one of `larder_testing`, on loopback: a fake that paces each connection. It shares the
//! processors with the program. The cases take turns.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a measurement stops at the first error and prints its results"
)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};

const MB: u64 = 1_000_000;
const MIB: u64 = 1 << 20;
/// Size of the layer, bytes. Its content cannot be compressed.
const SIZE: usize = 400_000_000;
const FAST: u64 = 200 * MB;

/// A network, as faults of a registry.
struct Case {
    name: &'static str,
    faults: Vec<Fault>,
}

/// Result of one build.
struct Run {
    seconds: f64,
    extra: u64,
    connections: u64,
    memory: u64,
}

fn main() {
    let runs = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(3);
    let image = image();
    let blob = image.layers[0].digest.clone();
    let equally = |rate| Fault::SlowConnections { every: 1, slow: rate, rate };
    let cases = [
        Case { name: "200 MB/s on each connection", faults: vec![equally(FAST)] },
        Case {
            name: "every fourth connection 1 MB/s",
            faults: vec![Fault::SlowConnections { every: 4, slow: MB, rate: FAST }],
        },
        Case {
            name: "every second connection 1 MB/s",
            faults: vec![Fault::SlowConnections { every: 2, slow: MB, rate: FAST }],
        },
        Case { name: "20 MB/s on each connection", faults: vec![equally(20 * MB)] },
        Case { name: "n connections: 1/n² of 200 MB/s each", faults: vec![Fault::Congested { rate: FAST }] },
        Case {
            name: "200 MB/s, ranges are ignored",
            faults: vec![Fault::IgnoreRangeOf(blob), equally(FAST)],
        },
    ];
    let mut results: Vec<Vec<Run>> = cases.iter().map(|_| Vec::new()).collect();
    for _ in 0..runs {
        for (case, results) in cases.iter().zip(&mut results) {
            results.push(run(&image, case));
        }
    }
    println!("one layer of {} MB; medians of {runs} runs", SIZE as u64 / MB);
    println!("| network | s (all) | ratio | connections | bytes sent twice | memory of all processes, MiB |");
    println!("|---|---|---|---|---|---|");
    let mut first = None;
    for (case, results) in cases.iter().zip(&mut results) {
        results.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let all: Vec<String> = results.iter().map(|run| format!("{:.2}", run.seconds)).collect();
        let median = &results[results.len() / 2];
        let base = *first.get_or_insert(median.seconds);
        println!(
            "| {} | {:.2} ({}) | {:.2} | {} | {} | {} |",
            case.name,
            median.seconds,
            all.join(" "),
            median.seconds / base,
            median.connections,
            results.iter().map(|run| run.extra).max().unwrap_or_default(),
            results.iter().map(|run| run.memory).max().unwrap_or_default() / MIB,
        );
    }
}

/// Returns an image of one layer.
fn image() -> Image {
    let mut state = 1u64;
    let mut bytes = vec![0; SIZE];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    let layer = Layer::from(LayerBuilder::new().file("model", bytes).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

fn run(image: &Image, case: &Case) -> Run {
    let mut registry = Registry::spawn();
    image.push(&mut registry, "team/model", "1").unwrap();
    for fault in &case.faults {
        registry.fault(fault.clone());
    }
    let dir = tempfile::tempdir().unwrap();
    let larder = std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into());
    let mut command = Command::new(larder);
    command.arg("build").arg("--volume").arg(dir.path().join("volume")).args(["--size", "2GiB"]);
    command.arg(format!("{}/team/model:1", registry.host()));
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut memory = 0;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        memory = memory.max(resident(child.id()));
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = start.elapsed().as_secs_f64();
    assert!(status.success(), "{}: {status}", case.name);
    let blob = &image.layers[0];
    let extra = registry.served(&blob.digest) - blob.blob.len() as u64;
    Run { seconds, extra, connections: registry.connections(), memory }
}

/// Returns the resident memory of a process and its descendants, without pages of files, bytes.
fn resident(pid: u32) -> u64 {
    let own = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
    let own = own.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let tasks = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
    let others = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let name = task.file_name();
        (name.to_str() != Some(&pid.to_string()))
            .then(|| fs::read_to_string(task.path().join("children")).unwrap_or_default())
    });
    let all = others.fold(children, |all, more| all + " " + &more);
    own + all.split_whitespace().filter_map(|child| child.parse().ok()).map(resident).sum::<u64>()
}
