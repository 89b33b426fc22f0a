//! Advice on relieving the bottleneck, with the names of settings. It names a setting only if the figures of
//! the same measurement show that the setting concerns them.

use super::{Limit, LimitName, MeasuredImage, MeasuredLayer, Settings, Stage, StageName, approximate, over};
use crate::job::LayerFormat;
use crate::seal::Compression;

/// Minimum size of a blob that is fetched by ranges, bytes (`registry::Ranges`).
const MIN_RANGED_BYTES: u64 = 32 << 20;

/// Files per second below which a disk is unusually slow; ordinary disks reach 30,000 to 100,000.
const SLOW_CREATE_RATE: f64 = 10_000.0;

/// Minimum number of files for a meaningful rate.
const MIN_CREATE_SAMPLE: u64 = 1000;

/// Note for a build that was faster than its roofline.
pub(super) const FASTER_THAN_ROOFLINE: &str = " The build was faster than the limit, so the speed of the machine changed during the \
     measurement. Other work or a disk with burst credits can cause this. Measure again.";

/// Returns one to three sentences.
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
            let zstd = if gzip { zstd(image) } else { "" };
            format!(
                "More processors do not help, because one processor decompresses the whole layer. Build the image with \
                 that layer split into several.{zstd}"
            )
        }
        LimitName::LayerHash => {
            "More processors do not help, because one processor hashes the whole layer. Build the image with \
             that layer split into several."
                .to_owned()
        }
        LimitName::LayerCreate => format!(
            "More processors do not help, because one thread creates all files of a layer. Use --layer-format erofs, which \
             creates none, or build the image with that layer split into several.{}",
            slow_names(stages)
        ),
        LimitName::Disk => disk(image, settings, stages),
    }
}

fn network(image: &MeasuredImage, settings: &Settings) -> String {
    let largest = image.layers.iter().map(|layer| layer.compressed_bytes).max().unwrap_or_default();
    let Settings { concurrency, connections_per_host, ranges_per_blob, .. } = settings;
    let mirror = "use a closer mirror (mirrors in [[registry.host]])";
    let can_grow = ranges_per_blob < connections_per_host;
    if can_grow && largest >= MIN_RANGED_BYTES && largest >= image.compressed_bytes() / 2 {
        return format!(
            "Most of the bytes are in one layer. Increase registry.ranges_per_blob (here {ranges_per_blob}) to fetch it over \
             several connections, up to --connections-per-host (here {connections_per_host}), or {mirror}."
        );
    }
    let layers = image.layers.len();
    let at_once = (*concurrency).min(*connections_per_host);
    if layers > at_once {
        return format!(
            "Only {at_once} of {layers} layers are fetched at once. If the registry limits each connection, increase \
             --concurrency (here {concurrency}) and --connections-per-host (here {connections_per_host}). Otherwise, {mirror}."
        );
    }
    format!("All layers were fetched at once: {mirror}.")
}

fn processors(image: &MeasuredImage, settings: &Settings, stages: &[Stage]) -> String {
    let Settings { processors, concurrency, .. } = settings;
    if image.layers.len() > 1 && concurrency < processors {
        return format!(
            "--concurrency (here {concurrency}) is less than the number of processors ({processors}): increase it to use more of \
             them."
        );
    }
    let counted = stages.iter().filter(|stage| stage.counted);
    let most = counted.max_by(|a, b| a.took.processor_seconds.total_cmp(&b.took.processor_seconds));
    let gzip = image.layers.iter().filter(|layer| layer.compression == Compression::Gzip);
    let gzip: u64 = gzip.map(MeasuredLayer::hashed_bytes).sum();
    let most = most.map(|stage| stage.stage);
    let mut hint = "";
    let instead = match most {
        Some(StageName::Create) => {
            hint = slow_names(stages);
            "most of the work is creating files, and --layer-format erofs creates none"
        }
        Some(StageName::Inflate) if gzip > image.hashed_bytes() / 2 => {
            hint = zstd(image);
            "most of the work is decompressing gzip"
        }
        Some(StageName::Inflate) => "most of the work is decompression",
        Some(StageName::Hash) => "most of the work is hashing, which is required",
        Some(StageName::Network) => "most of the work is receiving",
        Some(StageName::Write | StageName::Sync) => "most of the work is writing",
        None => "there is little to do",
    };
    format!("More processors help (here {processors}, from CPU affinity and cgroup quota); {instead}.{hint}")
}

/// Returns advice about zstd, if the image has layers of both compressions and those of zstd were
/// decompressed faster.
fn zstd(image: &MeasuredImage) -> &'static str {
    let rate = |compression| {
        let layers = image.layers.iter().filter(|layer| layer.compression == compression);
        let (bytes, time) =
            layers.fold((0, 0), |(bytes, time), layer| (bytes + layer.tar_bytes, time + layer.inflate_us));
        over(approximate(bytes), approximate(time))
    };
    if rate(Compression::Zstd) > rate(Compression::Gzip) {
        " The layers with zstd were decompressed faster than those with gzip, so compress all of them with zstd."
    } else {
        ""
    }
}

/// Returns advice for a file system that creates files unusually slowly.
fn slow_names(stages: &[Stage]) -> &'static str {
    let create = stages.iter().find(|stage| stage.stage == StageName::Create);
    let is_slow = |create: &Stage| {
        create.per_second < SLOW_CREATE_RATE
            && create.entries.is_some_and(|entries| entries >= MIN_CREATE_SAMPLE)
    };
    if create.is_some_and(is_slow) {
        " ext4 creates files this slowly if many files were removed in the last minutes. Measure again later, or on a \
         newly mounted file system."
    } else {
        ""
    }
}

fn disk(image: &MeasuredImage, settings: &Settings, stages: &[Stage]) -> String {
    let of = |name| stages.iter().find(|stage| stage.stage == name);
    let wall = |name| of(name).map_or(0.0, |stage| stage.took.wall_seconds);
    let (write, sync) = (wall(StageName::Write), wall(StageName::Sync));
    let took = format!("Writing takes {write:.3} s and syncing {sync:.3} s");
    let (files, layers) = (image.entries().unwrap_or_default(), image.layers.len());
    if settings.layer_format == Some(LayerFormat::Overlay) && sync > write && files >= MIN_CREATE_SAMPLE {
        return format!(
            "{took} for {files} files. Use a faster disk, or --layer-format erofs, which writes one file for each of the \
             {layers} layers."
        );
    }
    format!("{took}. Use a faster disk or smaller images.")
}
