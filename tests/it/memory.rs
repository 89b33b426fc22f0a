//! Memory use that is independent of the images: a layer of 4 GiB, a directory of 100,000 entries, twenty
//! images at once.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_testing::image::{Document, Format, Image, Layer};
use larder_testing::layer::{LayerBuilder, gzip};
use serde_json::json;

use crate::harness::cgroup::MemoryCgroup;
use crate::harness::served::{Running, Served, cache, random};
use crate::harness::{Need, isolated};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 256 * MIB;

/// Builds under the limit. Returns the peak memory of the process itself, in bytes, without page cache.
fn peak(name: &str, served: &Served, build: &Command) -> u64 {
    let cgroup = MemoryCgroup::new(name, LIMIT);
    let log = served.beside("log");
    let mut command = cgroup.wrap(build);
    command.stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap());
    let started = Instant::now();
    let child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut running = Running::of(child);
    let mut peak = 0;
    while !running.has_ended() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let high = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = peak.max(high.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024);
        sleep(Duration::from_millis(20));
    }
    let code = running.code_within(Duration::ZERO);
    assert_eq!(code, Some(0), "{}", fs::read_to_string(&log).unwrap());
    eprintln!(
        "{name}: {} MiB resident, {} MiB with page cache, {:.1?}",
        peak / MIB,
        cgroup.peak() / MIB,
        started.elapsed()
    );
    assert!(cgroup.peak() <= LIMIT);
    peak
}

const BLOCKS: u64 = 4096;

/// Returns an image of one layer with one file of 4 GiB, in one gzip member per MiB. Only one of the members
/// is in memory.
fn four_gibibytes(served: &Served) -> String {
    let block = [random(9, 512 << 10), vec![b'z'; 512 << 10]].concat();
    let size = BLOCKS * MIB;
    let head = LayerBuilder::new().odd("large", b'0', b"", |header| {
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    });
    let (head, tail) = (head.unfinished(), vec![0; 1024]);
    let members = [gzip(&head), gzip(&block), gzip(&tail)];
    let digest = |[head, block, tail]: [&[u8]; 3]| {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(head);
        (0..BLOCKS).for_each(|_| hasher.update(block));
        hasher.update(tail);
        hasher.finish()
    };
    let diff_id = digest([&head, &block, &tail]);
    let [head, block, tail] = members.map(Bytes::from);
    let blob = digest([&head, &block, &tail]);
    let (first, each) = (head.len() as u64, block.len() as u64);
    let blob_size = first + BLOCKS * each + tail.len() as u64;
    let byte = move |at: u64| -> (Bytes, usize) {
        let index = |n: u64| usize::try_from(n).unwrap();
        match at.checked_sub(first) {
            None => (head.clone(), index(at)),
            Some(at) if at < BLOCKS * each => (block.clone(), index(at % each)),
            Some(at) => (tail.clone(), index(at - BLOCKS * each)),
        }
    };
    let generate = move |mut at: u64, len: usize| {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let (piece, from) = byte(at);
            let piece = &piece[from..piece.len().min(from + len - bytes.len())];
            at += piece.len() as u64;
            bytes.extend_from_slice(piece);
        }
        Bytes::from(bytes)
    };
    served.registry.put_generated(blob.clone(), blob_size, Arc::new(generate));
    let config = json!({
        "architecture": larder_model::platform::Platform::host().architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = Document::new(Format::Oci.config(), &config);
    served.registry.put_blob(config.bytes.clone());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": Format::Oci.manifest(),
        "config": config.descriptor(),
        "layers": [{"mediaType": Format::Oci.layer("tar+gzip"), "digest": blob, "size": blob_size}],
    });
    served.registry.put_manifest("large", "1", Format::Oci.manifest(), manifest.to_string());
    format!("{}/large:1", served.registry.host())
}

#[case]
fn a_layer_of_four_gibibytes() {
    isolated(&[Need::MemoryCgroup], || {
        let served = Served::new([]);
        let reference = four_gibibytes(&served);
        let mut build = served.build(&served.volume(), 5 << 30);
        let peak = peak("4gib", &served, build.arg(reference));
        assert!(peak < 96 * MIB, "{peak}");
        assert_eq!(cache(&served.volume()).content.totals.size, BLOCKS * MIB + 1536);
    });
}

#[case]
fn a_directory_of_a_hundred_thousand_entries() {
    isolated(&[Need::MemoryCgroup], || {
        let builder = (0..100_000).fold(LayerBuilder::new(), |b, n| b.file(format!("wide/{n:06}"), ""));
        let served = Served::new([Image::builder(Format::Oci).layer(builder.gzip().into()).build()]);
        let peak = peak("wide", &served, &served.build(&served.volume(), 64 * MIB));
        assert!(peak < 96 * MIB, "{peak}");
        assert_eq!(cache(&served.volume()).content.totals.entries, 100_000);
    });
}

#[case]
fn twenty_images_at_once() {
    isolated(&[Need::MemoryCgroup], || {
        let layer = |seed: u64| -> Layer {
            let files =
                (0..200).fold(LayerBuilder::new(), |b, n| b.file(format!("d-{seed}/{n}"), random(n, 9000)));
            files.file(format!("large-{seed}"), random(seed, 3 << 20)).zstd().into()
        };
        let base = layer(99);
        let images = (0..20).map(|n| Image::builder(Format::Oci).layers([base.clone(), layer(n)]).build());
        let served = Served::new(images);
        let mut build = served.build(&served.volume(), 512 * MIB);
        let peak = peak("twenty", &served, build.args(["--concurrency", "20"]));
        // Each layer has its own decoder, channel and buffers.
        assert!(peak < 200 * MIB, "{peak}");
        let content = cache(&served.volume()).content;
        assert_eq!((content.images.len(), content.totals.layers), (20, 21));
        let fetched: Vec<&Digest> = content.layers.iter().map(|layer| &layer.blob).collect();
        assert_eq!(
            fetched.iter().map(|blob| served.registry.served(blob)).sum::<u64>(),
            content.totals.compressed_size
        );
    });
}
