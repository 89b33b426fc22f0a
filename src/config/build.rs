//! `[build]`: how images are built into a volume.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Fault, within};
use larder_model::job::LayerFormat;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// Layers that are fetched and extracted side by side.
    pub concurrency: usize,
    /// What happens when the volume is smaller than the 3x rule asks.
    pub sizing: Sizing,
    /// Form in which layers lie on a volume.
    pub layer_format: LayerFormat,
    /// File of the private key by which volumes are signed; without it, or where it is empty, they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_key: Option<PathBuf>,
    /// Most bytes of ranges that wait in memory for their turn, all layers together.
    pub memory_budget: ByteSize,
    /// Most members of one layer.
    pub max_entries: u64,
    /// Most bytes of one layer's files as they appear, holes counted.
    pub max_logical_size: ByteSize,
    /// Most bytes of tar for each byte of blob; holds only above `ratio_floor`.
    pub max_ratio: u64,
    /// Bytes of tar below which the ratio is not looked at.
    pub ratio_floor: ByteSize,
}

impl Default for Build {
    fn default() -> Self {
        Build {
            concurrency: 4,
            sizing: Sizing::Enforce,
            layer_format: LayerFormat::Overlay,
            sign_key: None,
            memory_budget: ByteSize(32 << 20),
            max_entries: 10_000_000,
            max_logical_size: ByteSize(1 << 40),
            max_ratio: 2000,
            ratio_floor: ByteSize(256 << 20),
        }
    }
}

impl Build {
    /// The file of the key by which volumes are signed. An empty variable of the environment takes that of the file away.
    pub fn sign_key(&self) -> Option<&Path> {
        self.sign_key.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        within(faults, "build.concurrency", self.concurrency, 1..=64);
        within(faults, "build.max_entries", self.max_entries, 1..=u64::MAX);
        within(faults, "build.max_ratio", self.max_ratio, 1..=u64::MAX);
        let smallest = ByteSize(8 << 20);
        within(faults, "build.memory_budget", self.memory_budget, smallest..=ByteSize(u64::MAX));
    }
}
