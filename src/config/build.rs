//! `[build]`: the settings of builds into a volume.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Fault, check_range};
use larder_model::job::LayerFormat;
use larder_model::size::ByteSize;
use larder_model::sizing::Sizing;

/// The `[build]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Build {
    /// Maximum number of layers that are fetched and extracted at the same time.
    pub concurrency: usize,
    /// Action if the volume is smaller than the 3x rule requires.
    pub sizing: Sizing,
    /// Format of the layers on a volume.
    pub layer_format: LayerFormat,
    /// File of the private key that signs volumes; if absent or empty, volumes are not signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign_key: Option<PathBuf>,
    /// Memory limit for out-of-order ranges, over all layers, bytes.
    pub memory_budget: ByteSize,
    /// Maximum number of members in one layer.
    pub max_entries: u64,
    /// Maximum apparent size of the files in one layer, including holes, bytes.
    pub max_logical_size: ByteSize,
    /// Maximum ratio of the size of the tar to the size of the blob; applies only above `ratio_floor`.
    pub max_ratio: u64,
    /// Size of the tar below which the ratio is not checked, bytes.
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
    /// Returns the file of the private key that signs volumes. An empty environment variable overrides the
    /// key of the file.
    pub fn sign_key(&self) -> Option<&Path> {
        self.sign_key.as_deref().filter(|path| !path.as_os_str().is_empty())
    }

    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        check_range(faults, "build.concurrency", self.concurrency, 1..=64);
        check_range(faults, "build.max_entries", self.max_entries, 1..=u64::MAX);
        check_range(faults, "build.max_ratio", self.max_ratio, 1..=u64::MAX);
        let min = ByteSize(8 << 20);
        check_range(faults, "build.memory_budget", self.memory_budget, min..=ByteSize(u64::MAX));
    }
}
