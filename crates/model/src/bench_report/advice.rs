//! What helps against the limit that binds, by the names of settings.

use super::{Limit, LimitName, MeasuredImage, MeasuredLayer, Settings, Stage, StageName};
use crate::job::LayerFormat;
use crate::seal::Compression;

/// Blobs smaller than this are never fetched by ranges, bytes (`registry::Ranges`).
const RANGED: u64 = 64 << 20;

/// Fewer names a second than this are none of an ordinary disk: 30,000 to 100,000 are.
const SLOW: f64 = 10_000.0;

/// From so many names on their rate says something.
const ENOUGH: u64 = 1000;

/// What to think of a limit that was beaten.
pub(super) const BEATEN: &str = " That it took less than the limit allows means that the machine did not give the same twice: other \
     work on it, or a disk that is quick only until an allowance is used up. Measure again.";

/// One to three sentences.
pub(super) fn advice(
    binding: LimitName,
    image: &MeasuredImage,
    settings: &Settings,
    stages: &[Stage],
    limit: Option<&Limit>,
) -> String {
    match binding {
        LimitName::Network => network(image, settings),
        LimitName::Processors => processors(image, settings, stages),
        LimitName::LayerInflate => {
            let layer = limit.and_then(|limit| limit.layer.as_ref());
            let layer = image.layers.iter().find(|of_image| Some(&of_image.digest) == layer);
            let gzip = layer.is_some_and(|layer| layer.compression == Compression::Gzip);
            let zstd = if gzip { ", or compressed with zstd, which inflates faster than gzip" } else { "" };
            format!(
                "More processors do not help, for one inflates the whole layer: the image wants building with that layer \
                 split into several{zstd}."
            )
        }
        LimitName::LayerHash => {
            "More processors do not help, for one hashes the whole layer: the image wants building \
             with that layer split into several."
                .to_owned()
        }
        LimitName::LayerCreate => format!(
            "More processors do not help, for one thread makes all names of a layer: --layer-format erofs makes none, else the \
             image wants building with that layer split into several.{}",
            slow_names(stages)
        ),
        LimitName::Disk => disk(settings),
    }
}

fn network(image: &MeasuredImage, settings: &Settings) -> String {
    let largest = image.layers.iter().map(|layer| layer.compressed_bytes).max().unwrap_or_default();
    let Settings { concurrency, connections_per_host, ranges_per_blob, .. } = settings;
    let mirror = "a mirror that is nearer helps (mirrors in [[registry.host]])";
    if largest >= RANGED && largest >= image.compressed_bytes() / 2 {
        return format!(
            "Most of the bytes are one layer: registry.ranges_per_blob (here {ranges_per_blob}) has it come by several \
             connections at once, as far as --connections-per-host (here {connections_per_host}) allows; else {mirror}."
        );
    }
    format!(
        "Where the registry limits each connection, more layers at once help: --concurrency (here {concurrency}) and \
         --connections-per-host (here {connections_per_host}); else {mirror}."
    )
}

fn processors(image: &MeasuredImage, settings: &Settings, stages: &[Stage]) -> String {
    let Settings { processors, concurrency, .. } = settings;
    if image.layers.len() > 1 && concurrency < processors {
        return format!(
            "--concurrency (here {concurrency}) is less than the processors ({processors}): more layers at once occupy more \
             of them."
        );
    }
    let counted = stages.iter().filter(|stage| stage.counted);
    let most = counted.max_by(|a, b| a.took.processor_seconds.total_cmp(&b.took.processor_seconds));
    let gzip = image.layers.iter().filter(|layer| layer.compression == Compression::Gzip);
    let gzip: u64 = gzip.map(MeasuredLayer::hashed_bytes).sum();
    let most = most.map(|stage| stage.stage);
    let instead = match most {
        Some(StageName::Create) => {
            "most of the work is making files, of which --layer-format erofs makes none"
        }
        Some(StageName::Inflate) if gzip > image.hashed_bytes() / 2 => {
            "most of the work is inflating gzip, for which layers that are compressed with zstd take less"
        }
        Some(StageName::Inflate) => "most of the work is inflating",
        Some(StageName::Hash) => {
            "most of the work is hashing, which cannot be left out; processors with SHA instructions do it fastest"
        }
        Some(StageName::Network) => "most of the work is receiving",
        Some(StageName::Write | StageName::Sync) => "most of the work is writing",
        None => "there is little to do",
    };
    let slow = if most == Some(StageName::Create) { slow_names(stages) } else { "" };
    format!(
        "More processors help (here {processors}, by affinity and the quota of the cgroup); {instead}.{slow}"
    )
}

/// What to think of where making names is out of proportion.
fn slow_names(stages: &[Stage]) -> &'static str {
    let create = stages.iter().find(|stage| stage.stage == StageName::Create);
    let is_slow =
        |create: &Stage| create.per_second < SLOW && create.entries.is_some_and(|entries| entries >= ENOUGH);
    if create.is_some_and(is_slow) {
        " So few names a second are what an ext4 gives where many files were removed in the last minutes: then measure again \
         later, or on a file system that was mounted since."
    } else {
        ""
    }
}

fn disk(settings: &Settings) -> String {
    match settings.layer_format {
        Some(LayerFormat::Overlay) => {
            "A faster disk helps; --layer-format erofs, which writes one file for a layer, leaves \
             less to sync than many small files do."
                .to_owned()
        }
        Some(LayerFormat::Erofs) | None => "A faster disk helps, and images that hold less.".to_owned(),
    }
}
