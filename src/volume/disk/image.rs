//! `image.json`: the description of a sealed disk, for programs that copy or mount it.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use larder_model::digest::Digest;

/// Format version that this build reads and writes.
pub(super) const VERSION: u32 = 1;

/// Maximum size of the file, in bytes.
pub(super) const MAX: u64 = 64 << 10;

/// File system of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// ext4 without a journal. Mount it with `ro,noload`.
    Ext4,
    /// EROFS, which is always read-only.
    Erofs,
}

/// The content of `image.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskImage {
    /// Version of the file format.
    pub version: u32,
    /// File system of the disk.
    pub format: Format,
    /// Size of `disk.img`, in bytes.
    pub size: u64,
    /// Block size of the file system, in bytes.
    pub block_size: u64,
    /// Label of the file system.
    pub label: String,
    /// UUID of the file system.
    pub uuid: Uuid,
    /// sha256 of `cache.json`, which exists both on the disk and next to it.
    pub cache_json: Digest,
    /// `true` if the disk was reduced to the size of its content.
    #[serde(default)]
    pub shrunk: bool,
    /// `true` if its space was not reserved on the host when it was filled.
    #[serde(default)]
    pub sparse: bool,
    /// `true` if writes bypassed the host's page cache when it was filled.
    #[serde(default)]
    pub direct_io: bool,
}

impl DiskImage {
    /// Parses and checks the file. The error is one sentence.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let image: DiskImage = serde_json::from_slice(json).map_err(|e| format!("image.json: {e}"))?;
        match image.version {
            VERSION => Ok(image),
            given => Err(format!("image.json has version {given}, but this larder reads version {VERSION}")),
        }
    }
}
