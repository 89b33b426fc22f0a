//! `cache.json`: what lies on a sealed volume and the digests that prove it. Its presence is the seal.

use serde::{Deserialize, Serialize};

use super::chain::ChainId;
use super::digest::Digest;
use super::job::LayerFormat;
use super::platform::Platform;
use super::size::ByteSize;

/// The version of the format that this build reads and writes.
pub const VERSION: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheManifest {
    /// Everything but the digest over it.
    #[serde(flatten)]
    pub content: Content,
    /// sha256 over `content` as compact JSON in the field order below.
    pub digest: Digest,
}

/// What the digest covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// Version of the Larder that sealed the volume.
    pub larder: String,
    /// Identity of the job: sha256 over images, platform, layer format and whether tar-split files are kept.
    pub job: Digest,
    /// Form of the layers.
    pub layer_format: LayerFormat,
    /// Whether every layer has its tar-split file; without them `verify` and export refuse.
    pub tar_split: bool,
    /// Cap of the volume, bytes.
    pub size: ByteSize,
    /// Images in the order of the job.
    pub images: Vec<Image>,
    /// Layers, parents before children.
    pub layers: Vec<Layer>,
    /// Sums.
    pub totals: Totals,
}

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The reference as given.
    pub reference: String,
    /// Its normal form.
    pub name: String,
    /// Digest of the index the tag pointed to, where there was one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the config.
    pub config: Digest,
    /// Platform of the config.
    pub platform: Platform,
    /// Chain IDs of the layers, base first.
    pub chain: Vec<ChainId>,
}

/// One layer on top of its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Chain ID: the name of its directory.
    pub chain_id: ChainId,
    /// Chain ID of its parent; none in a base layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<ChainId>,
    /// sha256 of the tar.
    pub diff_id: Digest,
    /// Digest of the blob as it came from the registry.
    pub blob: Digest,
    /// Media type of the blob.
    pub media_type: String,
    /// What the magic bytes of the blob said.
    pub compression: Compression,
    /// Size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes.
    pub size: u64,
    /// Members of the tar.
    pub entries: u64,
    /// Size of its tar-split file, bytes; none where none is kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tar_split_size: Option<u64>,
    /// The image that it is; none in a layer that is a directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<LayerImage>,
    /// What commit settled because it depends on the parents.
    #[serde(default)]
    pub settled: Settled,
    /// What an unprivileged build could not keep; only with `--rootless`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lost: Vec<Lost>,
}

/// The EROFS image of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerImage {
    /// Size of the image by diff ID, bytes.
    pub size: u64,
    /// Size of the image that is laid over it on top of these parents, bytes; none where nothing depends on them. Who mounts
    /// layers by their diff IDs alone misses what it holds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fixup_size: Option<u64>,
    /// The dm-verity hash tree behind the image by diff ID, where there is one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verity: Option<Verity>,
}

/// A dm-verity hash tree (Linux, admin-guide/device-mapper/verity.rst): sha256, blocks of 4096 bytes, 32 zero bytes of salt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verity {
    /// Digest over the top of the tree.
    pub root_hash: Digest,
    /// Where its header lies, bytes.
    pub hash_offset: u64,
}

impl Verity {
    /// The file beside the image, as containerd reads it.
    pub fn sidecar(&self) -> String {
        format!("{{\"roothash\":\"{}\",\"hashoffset\":{}}}\n", self.root_hash.hex(), self.hash_offset)
    }
}

/// How a blob was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952), one member or many.
    Gzip,
    /// Zstandard (RFC 8878), one frame or many.
    Zstd,
}

/// What commit settled. Paths are relative to the top of the layer, the root is `.`, bytes outside printable ASCII are
/// `\xNN`. Of a layer that is an image it is what the second image holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Directories that the tar implies but does not contain and that took their metadata from a lower layer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inherited: Vec<String>,
    /// Opaque directories written as one whiteout for each lower name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub opaque_as_whiteouts: Vec<String>,
    /// Files of lower layers copied up because a hard link names them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub copied_up: Vec<String>,
}

/// One thing that an unprivileged build could not keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Path in the layer, escaped as in [`Settled`].
    pub path: String,
    /// What was lost: `owner 0:33`, `device c 1:3`, `xattr security.capability`.
    pub what: String,
}

/// Sums over the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Number of layers.
    pub layers: u64,
    /// Members of all tars.
    pub entries: u64,
    /// Bytes of all distinct blobs.
    pub compressed_size: u64,
    /// Bytes of all tars, each layer once.
    pub size: u64,
}

impl CacheManifest {
    /// Seals `content` with its digest.
    pub fn new(content: Content) -> Result<Self, serde_json::Error> {
        let digest = Digest::sha256(&serde_json::to_vec(&content)?);
        Ok(CacheManifest { content, digest })
    }

    /// Reads the file and checks version and digest.
    pub fn parse(json: &[u8]) -> Result<Self, SealError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(SealError::Version { given: version });
        }
        let manifest: CacheManifest = serde_json::from_slice(json)?;
        let found = Digest::sha256(&serde_json::to_vec(&manifest.content)?);
        if found != manifest.digest {
            return Err(SealError::Digest { want: manifest.digest, found });
        }
        Ok(manifest)
    }
}

/// `cache.json` cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Not JSON, or not of this shape.
    #[error("reading cache.json: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A version that this build does not know.
    #[error("cache.json has version {given}, this larder reads version {VERSION}: use a matching larder")]
    Version {
        /// Version found.
        given: u32,
    },
    /// The digest over the content does not hold.
    #[error(
        "cache.json says its content has digest {want}, it has {found}: the file was changed after the seal"
    )]
    Digest {
        /// Digest in the file.
        want: Digest,
        /// Digest of the content.
        found: Digest,
    },
}
