//! The report of `larder bench`: time of each stage alone, time of the whole build, and the bottleneck.
//!
//! ```text
//! each stage alone ──► limits: lower bounds for the time of any schedule of the same work ──► the largest is
//! the roofline whole build ──────────────────────────────────────────────────────────────────────────────►
//! time / roofline
//! ```

mod advice;
mod limits;
mod load;
mod runs;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::event::Failure;
use super::job::LayerFormat;
use super::platform::Platform;
use super::seal::Compression;
use super::timeline::Timeline;

pub use limits::{Limit, LimitName};
pub use load::Load;
pub use runs::{Range, Spread};

/// The current version of the report format.
pub const VERSION: u32 = 1;

/// A report of `larder bench`. Within a version, fields are only added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Version of the report format, [`VERSION`].
    pub version: u32,
    /// Version of the `larder` program.
    pub larder: String,
    /// The part of a build that was measured.
    pub kind: Kind,
    /// The image that was measured.
    pub image: MeasuredImage,
    /// Settings of the measurement.
    pub settings: Settings,
    /// Number of runs. Each time of the report is the median of the runs.
    #[serde(default = "one")]
    pub runs: usize,
    /// Other work on the machine; `None` if it is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub load: Option<Load>,
    /// Stages, in the order in which they were measured.
    pub stages: Vec<Stage>,
    /// Time of the whole build: all counted stages at once.
    pub together: Elapsed,
    /// Spread of the times of the whole build; `None` for a single run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub together_spread: Option<Spread>,
    /// Lower bounds for the build time, the largest first.
    pub limits: Vec<Limit>,
    /// Name of the largest limit, which is the bottleneck.
    pub binding: LimitName,
    /// Time of the largest limit, seconds.
    pub roofline_seconds: f64,
    /// The wall time of [`together`](Self::together) divided by the roofline; 0 if either is unknown.
    pub times_roofline: f64,
    /// Advice on how to reduce the build time.
    pub advice: String,
    /// Timeline of the whole build, in the run that is closest to the median; `None` if no volume was built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub timeline: Option<Box<Timeline>>,
}

/// The report of a bench that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchFailed {
    /// Version of the report format, [`VERSION`].
    pub version: u32,
    /// All failures, including the decisive one.
    pub failures: Vec<Failure>,
}

/// The part of a build that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// From blobs in files to digests.
    Decode,
    /// From blobs in files to a sealed volume.
    Apply,
    /// From a reference to a sealed volume.
    Build,
}

impl Kind {
    /// Returns the name on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Decode => "decode",
            Kind::Apply => "apply",
            Kind::Build => "build",
        }
    }

    /// Reports whether a volume is built.
    pub fn builds(self) -> bool {
        self != Kind::Decode
    }

    /// Reports whether the stage is part of the measured build.
    pub fn counts(self, stage: StageName) -> bool {
        match stage {
            StageName::Network => self == Kind::Build,
            StageName::Inflate | StageName::Hash => true,
            StageName::Create | StageName::Write | StageName::Sync => self.builds(),
        }
    }
}

/// The image that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredImage {
    /// The reference as given.
    pub reference: String,
    /// The normal form of the reference.
    pub name: String,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Platform that was chosen.
    pub platform: Platform,
    /// Distinct layers, the largest blob first.
    pub layers: Vec<MeasuredLayer>,
}

/// A layer of the measured image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Compression found in the first bytes of the blob.
    pub compression: Compression,
    /// Size of the blob, bytes.
    pub compressed_bytes: u64,
    /// Size of the tar, bytes.
    pub tar_bytes: u64,
    /// Number of members of the tar; `None` if no volume was built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entries: Option<u64>,
    /// Time to decompress the layer on one processor, microseconds.
    pub inflate_us: u64,
}

impl MeasuredImage {
    /// Returns the total size of all blobs, bytes.
    pub fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.compressed_bytes).sum()
    }

    /// Returns the total size of all tars, bytes.
    pub fn tar_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.tar_bytes).sum()
    }

    /// Returns the number of members of all tars; `None` if no volume was built.
    pub fn entries(&self) -> Option<u64> {
        self.layers.iter().map(|layer| layer.entries).sum()
    }

    /// Returns the number of bytes that are hashed with sha256: blobs and tars.
    pub fn hashed_bytes(&self) -> u64 {
        self.layers.iter().map(MeasuredLayer::hashed_bytes).sum()
    }

    /// Returns the number of hashed bytes for which there is a byte of the other hash of the same layer, so
    /// that both are hashed together.
    pub fn hashed_together_bytes(&self) -> u64 {
        self.layers.iter().map(MeasuredLayer::hashed_together_bytes).sum()
    }
}

impl MeasuredLayer {
    /// Returns the number of bytes that are hashed with sha256: blob and tar. An uncompressed blob is hashed
    /// only once.
    pub fn hashed_bytes(&self) -> u64 {
        match self.compression {
            Compression::None => self.tar_bytes,
            Compression::Gzip | Compression::Zstd => self.compressed_bytes + self.tar_bytes,
        }
    }

    fn hashed_together_bytes(&self) -> u64 {
        match self.compression {
            Compression::None => 0,
            Compression::Gzip | Compression::Zstd => 2 * self.compressed_bytes.min(self.tar_bytes),
        }
    }
}

/// The settings of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Number of processors that this process can use.
    pub processors: usize,
    /// Maximum number of layers processed at once.
    pub concurrency: usize,
    /// Maximum number of connections to one host.
    pub connections_per_host: usize,
    /// Maximum number of concurrent range requests for one large blob.
    pub ranges_per_blob: usize,
    /// Format of layers; `None` if no volume is built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer_format: Option<LayerFormat>,
    /// `true` if tar-split files are written; `None` if no volume is built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tar_split: Option<bool>,
}

/// Wall time and processor time of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Elapsed {
    /// Wall time from start to end, seconds.
    pub wall_seconds: f64,
    /// Processor time of this process, all threads, user and kernel, seconds.
    pub processor_seconds: f64,
}

/// Measurement of one stage alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Name of the stage.
    pub stage: StageName,
    /// `true` if the stage is part of the measured build.
    pub counted: bool,
    /// Time for the whole image, scaled up if only a share was processed.
    #[serde(flatten)]
    pub took: Elapsed,
    /// Number of bytes of the whole image that the stage processes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// Number of files of the whole image that the stage creates.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entries: Option<u64>,
    /// Bytes per second, or files per second if the stage has no bytes; 0 if there was no work.
    pub per_second: f64,
    /// Share of the image that was actually processed, above 0 and at most 1.
    pub share: f64,
    /// Spread of the times; `None` for a single run.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spread: Option<Spread>,
}

impl Stage {
    /// Creates the measurement of a stage that processed `share` of the image's `bytes` and `entries` in the
    /// time `took`.
    pub fn new(
        stage: StageName,
        kind: Kind,
        took: Elapsed,
        (bytes, entries): (Option<u64>, Option<u64>),
        share: f64,
    ) -> Self {
        let took = Elapsed {
            wall_seconds: over(took.wall_seconds, share),
            processor_seconds: over(took.processor_seconds, share),
        };
        let amount = bytes.or(entries).unwrap_or_default();
        let per_second = over(approximate(amount), took.wall_seconds);
        Stage { stage, counted: kind.counts(stage), took, bytes, entries, per_second, share, spread: None }
    }
}

/// A stage of processing a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Sending requests to the registry and receiving blobs.
    Network,
    /// Decompressing the blobs.
    Inflate,
    /// Computing sha256 of blobs and tars.
    Hash,
    /// Creating files and inodes.
    Create,
    /// Writing file contents.
    Write,
    /// Syncing everything to disk.
    Sync,
}

impl StageName {
    /// Returns the name of the stage in the report.
    pub fn word(self) -> &'static str {
        match self {
            StageName::Network => "network",
            StageName::Inflate => "inflate",
            StageName::Hash => "hash",
            StageName::Create => "create",
            StageName::Write => "write",
            StageName::Sync => "sync",
        }
    }
}

impl BenchReport {
    /// Creates a report of one run and computes limits and advice from the measurements.
    pub fn new(
        kind: Kind,
        image: MeasuredImage,
        settings: Settings,
        stages: Vec<Stage>,
        together: Elapsed,
    ) -> Self {
        let limits = limits::find(&image, &settings, &stages);
        let (binding, roofline_seconds) =
            limits.first().map_or((LimitName::Processors, 0.0), |limit| (limit.limit, limit.seconds));
        let times_roofline = over(together.wall_seconds, roofline_seconds);
        let mut advice = advice::advice(binding, &image, &settings, &stages, limits.first());
        if times_roofline < 1.0 {
            advice.push_str(advice::FASTER_THAN_ROOFLINE);
        }
        BenchReport {
            version: VERSION,
            larder: env!("CARGO_PKG_VERSION").to_owned(),
            kind,
            image,
            settings,
            runs: 1,
            load: None,
            stages,
            together,
            together_spread: None,
            limits,
            binding,
            roofline_seconds,
            times_roofline,
            advice,
            timeline: None,
        }
    }
}

fn one() -> usize {
    1
}

/// Returns `part / whole`, or 0 if `whole` is 0, because JSON has no infinity.
fn over(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Converts a count to a floating-point number. The result is exact up to 2^53 (8 PiB).
#[expect(clippy::cast_precision_loss, reason = "numbers for people, far below 2^53")]
pub fn approximate(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
