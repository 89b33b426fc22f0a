//! What `larder bench` says: how long each stage takes alone, how long all take together, and which limit binds.
//!
//! ```text
//! stages, each alone ──► limits: what no order of the work could be quicker than ──► the largest is the roofline
//! together, as it is ──────────────────────────────────────────────────────────────► so many times the roofline
//! ```

mod advice;
mod limits;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::event::Failure;
use super::job::LayerFormat;
use super::platform::Platform;
use super::seal::Compression;

pub use limits::{Limit, LimitName};

/// The version of the format.
pub const VERSION: u32 = 1;

/// The whole report. Fields are only ever added within a version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Version of the program.
    pub larder: String,
    /// What was done together.
    pub kind: Kind,
    /// The image.
    pub image: MeasuredImage,
    /// How it was done.
    pub settings: Settings,
    /// Stages in the order in which they were measured.
    pub stages: Vec<Stage>,
    /// All that counts at once, as a build does it.
    pub together: Took,
    /// What bounds it, the largest first.
    pub limits: Vec<Limit>,
    /// The largest of them.
    pub binding: LimitName,
    /// Its time, seconds.
    pub roofline_seconds: f64,
    /// The wall time of [`together`](Self::together) in multiples of that; 0 where either is not known.
    pub times_roofline: f64,
    /// What would help.
    pub advice: String,
}

/// What a bench that failed says in the report's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchFailed {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Why, the decisive failure among others.
    pub failures: Vec<Failure>,
}

/// How much of a build is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Blobs in files to digests.
    Decode,
    /// Blobs in files to a sealed volume.
    Apply,
    /// A reference to a sealed volume.
    Build,
}

impl Kind {
    /// The word for it on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Decode => "decode",
            Kind::Apply => "apply",
            Kind::Build => "build",
        }
    }

    /// Whether a volume is built.
    pub fn builds(self) -> bool {
        self != Kind::Decode
    }

    /// Whether the stage is a part of what is done together.
    pub fn counts(self, stage: StageName) -> bool {
        match stage {
            StageName::Network => self == Kind::Build,
            StageName::Inflate | StageName::Hash => true,
            StageName::Create | StageName::Write | StageName::Sync => self.builds(),
        }
    }
}

/// The image that was measured with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredImage {
    /// The reference as given.
    pub reference: String,
    /// Its normal form.
    pub name: String,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Platform chosen.
    pub platform: Platform,
    /// Distinct layers, the largest blob first.
    pub layers: Vec<MeasuredLayer>,
}

/// One layer of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeasuredLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// What its first bytes say.
    pub compression: Compression,
    /// Size of the blob, bytes.
    pub compressed_bytes: u64,
    /// Size of the tar, bytes.
    pub tar_bytes: u64,
    /// Members of the tar; none where no volume was built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entries: Option<u64>,
    /// What one processor takes to inflate it, microseconds.
    pub inflate_us: u64,
}

impl MeasuredImage {
    /// Size of all blobs, bytes.
    pub fn compressed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.compressed_bytes).sum()
    }

    /// Size of all tars, bytes.
    pub fn tar_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.tar_bytes).sum()
    }

    /// Members of all tars; none where no volume was built.
    pub fn entries(&self) -> Option<u64> {
        self.layers.iter().map(|layer| layer.entries).sum()
    }

    /// Bytes that go through sha256: blobs and tars.
    pub fn hashed_bytes(&self) -> u64 {
        self.layers.iter().map(MeasuredLayer::hashed_bytes).sum()
    }
}

impl MeasuredLayer {
    /// Bytes that go through sha256: blob and tar. Where the blob is the tar it is hashed once.
    pub fn hashed_bytes(&self) -> u64 {
        match self.compression {
            Compression::None => self.tar_bytes,
            Compression::Gzip | Compression::Zstd => self.compressed_bytes + self.tar_bytes,
        }
    }
}

/// What the numbers were measured under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Processors that this process may use at once.
    pub processors: usize,
    /// Layers at once.
    pub concurrency: usize,
    /// Connections to one host.
    pub connections_per_host: usize,
    /// Ranges of one large blob at once.
    pub ranges_per_blob: usize,
    /// Form of layers; none where no volume is built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer_format: Option<LayerFormat>,
    /// Whether tar-split files are written; none where no volume is built.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tar_split: Option<bool>,
}

/// Time that something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// From its start to its end, seconds.
    pub wall_seconds: f64,
    /// Processors' time of this process, all threads, user and kernel, seconds.
    pub processor_seconds: f64,
}

/// A stage alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Which.
    pub stage: StageName,
    /// Whether it is a part of what was done together.
    pub counted: bool,
    /// Time for all of the image, scaled up where only a share was done.
    #[serde(flatten)]
    pub took: Took,
    /// Bytes of the whole image that go through it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes: Option<u64>,
    /// Names of the whole image that it makes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entries: Option<u64>,
    /// Bytes a second, or names where there are no bytes; 0 where nothing was to be done.
    pub per_second: f64,
    /// The share of the image that was really done, above 0 and at most 1.
    pub share: f64,
}

impl Stage {
    /// A stage that did `share` of the image's `bytes` and `entries`, and took so long for that.
    pub fn new(
        stage: StageName,
        kind: Kind,
        took: Took,
        (bytes, entries): (Option<u64>, Option<u64>),
        share: f64,
    ) -> Self {
        let took = Took {
            wall_seconds: over(took.wall_seconds, share),
            processor_seconds: over(took.processor_seconds, share),
        };
        let amount = bytes.or(entries).unwrap_or_default();
        let per_second = over(approximate(amount), took.wall_seconds);
        Stage { stage, counted: kind.counts(stage), took, bytes, entries, per_second, share }
    }
}

/// What a layer goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Asking the registry and receiving blobs.
    Network,
    /// Inflating them.
    Inflate,
    /// sha256 of blobs and tars.
    Hash,
    /// Making names and inodes.
    Create,
    /// Writing contents.
    Write,
    /// Making all of it durable.
    Sync,
}

impl StageName {
    /// The word for it.
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
    /// Finds the limits in what was measured.
    pub fn new(
        kind: Kind,
        image: MeasuredImage,
        settings: Settings,
        stages: Vec<Stage>,
        together: Took,
    ) -> Self {
        let limits = limits::find(&image, &settings, &stages);
        let (binding, roofline_seconds) =
            limits.first().map_or((LimitName::Processors, 0.0), |limit| (limit.limit, limit.seconds));
        let times_roofline = over(together.wall_seconds, roofline_seconds);
        let mut advice = advice::advice(binding, &image, &settings, &stages, limits.first());
        if times_roofline < 1.0 {
            advice.push_str(advice::BEATEN);
        }
        BenchReport {
            version: VERSION,
            larder: env!("CARGO_PKG_VERSION").to_owned(),
            kind,
            image,
            settings,
            stages,
            together,
            limits,
            binding,
            roofline_seconds,
            times_roofline,
            advice,
        }
    }
}

/// `part / whole`, and 0 where there is no whole: JSON knows no infinity.
fn over(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// A count as a number to divide. Up to 2^53 nothing is lost, which are 8 PiB.
#[expect(clippy::cast_precision_loss, reason = "numbers for people, far below 2^53")]
pub fn approximate(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
