//! Lower bounds for the time of any schedule of the same work.

use serde::{Deserialize, Serialize};

use super::{MeasuredImage, MeasuredLayer, Settings, Stage, StageName, approximate, over};
use crate::digest::Digest;

/// One lower bound for the build time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// The resource that causes the limit.
    pub limit: LimitName,
    /// Minimum time of a build under this limit, seconds.
    pub seconds: f64,
    /// Digest of the layer's blob, if the limit is about one layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<Digest>,
}

/// The resource that limits a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitName {
    /// Throughput of the registry and the network.
    Network,
    /// Processor time of all stages, divided evenly among the processors.
    Processors,
    /// One stream is decompressed by one processor.
    LayerInflate,
    /// One stream is hashed by one processor.
    LayerHash,
    /// The files of one layer are created by one thread, in the order of its tar.
    LayerCreate,
    /// Writing and syncing, without any other work.
    Disk,
}

impl LimitName {
    /// Returns the name that messages use.
    pub fn words(self) -> &'static str {
        match self {
            LimitName::Network => "network",
            LimitName::Processors => "processors",
            LimitName::LayerInflate => "decompressing one layer",
            LimitName::LayerHash => "hashing one layer",
            LimitName::LayerCreate => "creating the files of one layer",
            LimitName::Disk => "disk",
        }
    }
}

/// Returns every limit that applies, the largest first.
pub(super) fn find(image: &MeasuredImage, settings: &Settings, stages: &[Stage]) -> Vec<Limit> {
    let counted = |name| stages.iter().find(|stage| stage.stage == name && stage.counted);
    let mut limits = Vec::new();
    let mut add = |limit, seconds, layer| limits.push(Limit { limit, seconds, layer });
    if let Some(network) = counted(StageName::Network) {
        add(LimitName::Network, network.took.wall_seconds, None);
    }
    let work: f64 =
        stages.iter().filter(|stage| stage.counted).map(|stage| stage.took.processor_seconds).sum();
    let processors = approximate(settings.processors.max(1) as u64);
    add(LimitName::Processors, work / processors, None);
    let mut slowest = |limit, cost: &dyn Fn(&MeasuredLayer) -> f64| {
        let costs = image.layers.iter().map(|layer| (layer, cost(layer)));
        if let Some((layer, seconds)) = costs.max_by(|(_, a), (_, b)| a.total_cmp(b)) {
            add(limit, seconds, Some(layer.digest.clone()));
        }
    };
    slowest(LimitName::LayerInflate, &|layer| approximate(layer.inflate_us) / 1e6);
    if let Some(hash) = counted(StageName::Hash) {
        slowest(LimitName::LayerHash, &|layer| over(approximate(layer.hashed_bytes()), hash.per_second));
    }
    if let Some(create) = counted(StageName::Create) {
        slowest(LimitName::LayerCreate, &|layer| {
            over(approximate(layer.entries.unwrap_or_default()), create.per_second)
        });
    }
    let disk = [StageName::Write, StageName::Sync].into_iter().filter_map(counted);
    let disk: Vec<f64> = disk.map(|stage| stage.took.wall_seconds).collect();
    if !disk.is_empty() {
        limits.push(Limit { limit: LimitName::Disk, seconds: disk.iter().sum(), layer: None });
    }
    limits.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    limits
}
