//! `image.json`: what a sealed disk is, for whoever hands it on or mounts it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use larder_model::digest::Digest;

/// The version of the format that this build reads and writes.
pub(super) const VERSION: u32 = 1;

/// Most bytes that the file may have.
pub(super) const MAX: u64 = 64 << 10;

/// The file system of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// ext4 without a journal: mount it `ro,noload`.
    Ext4,
    /// EROFS: read-only by nature.
    Erofs,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// Format version.
    pub version: u32,
    /// File system.
    pub format: Format,
    /// Size of `disk.img`, bytes.
    pub size: u64,
    /// Size of a block of the file system, bytes.
    pub block_size: u64,
    /// Label of the file system.
    pub label: String,
    /// UUID of the file system.
    pub uuid: Uuid,
    /// sha256 over `cache.json`, which lies on the disk and beside it.
    pub cache_json: Digest,
    /// Whether it was cut to what it holds.
    #[serde(default)]
    pub shrunk: bool,
    /// Whether its space was not reserved on the host when it was filled.
    #[serde(default)]
    pub sparse: bool,
    /// Whether it was filled past the page cache of the host.
    #[serde(default)]
    pub direct_io: bool,
}

impl DiskImage {
    /// Reads the file; an error in one sentence where it is none of ours.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let image: DiskImage = serde_json::from_slice(json).map_err(|e| format!("image.json: {e}"))?;
        match image.version {
            VERSION => Ok(image),
            given => Err(format!("image.json has version {given}, this larder reads version {VERSION}")),
        }
    }
}
