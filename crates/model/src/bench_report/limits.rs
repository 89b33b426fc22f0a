//! What no order of the same work could be quicker than.

use serde::{Deserialize, Serialize};

use super::{MeasuredImage, MeasuredLayer, Settings, Stage, StageName, approximate, over};
use crate::digest::Digest;

/// One bound.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limit {
    /// Which.
    pub limit: LimitName,
    /// The least time that it allows, seconds.
    pub seconds: f64,
    /// Digest of the blob of the layer that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<Digest>,
}

/// What bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitName {
    /// What the registry and the way to it give.
    Network,
    /// The work of all stages, shared evenly by the processors.
    Processors,
    /// One stream is inflated by one processor.
    LayerInflate,
    /// One stream is hashed by one processor.
    LayerHash,
    /// The names of one layer are made by one thread, in the order of its tar.
    LayerCreate,
    /// Writing and syncing, with nothing else to wait for.
    Disk,
}

impl LimitName {
    /// What it is called for a person.
    pub fn words(self) -> &'static str {
        match self {
            LimitName::Network => "network",
            LimitName::Processors => "processors",
            LimitName::LayerInflate => "inflating one layer",
            LimitName::LayerHash => "hashing one layer",
            LimitName::LayerCreate => "creating the names of one layer",
            LimitName::Disk => "disk",
        }
    }
}

/// Every limit that counts, the largest first.
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
