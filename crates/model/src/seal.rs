//! `cache.json`: the content of a sealed volume and the digests that verify it. A volume is sealed if this
//! file exists.

use serde::{Deserialize, Serialize};

use super::chain::ChainId;
use super::digest::Digest;
use super::job::LayerFormat;
use super::platform::Platform;
use super::size::ByteSize;

/// The version of `cache.json` that this build reads and writes.
pub const VERSION: u32 = 1;

/// The content of `cache.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheManifest {
    /// All fields except the digest.
    #[serde(flatten)]
    pub content: Content,
    /// sha256 over `content` as compact JSON in the field order below.
    pub digest: Digest,
}

/// The part of `cache.json` that the digest covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Version of the `larder` that sealed the volume.
    pub larder: String,
    /// Identity of the job: sha256 of images, platform, layer format and whether tar-split files are kept.
    pub job: Digest,
    /// Format of the layers.
    pub layer_format: LayerFormat,
    /// `true` if every layer has its tar-split file, which `verify` and export require.
    pub tar_split: bool,
    /// Size limit of the volume, bytes.
    pub size: ByteSize,
    /// Images, in the order of the job.
    pub images: Vec<Image>,
    /// Layers, parents before children.
    pub layers: Vec<Layer>,
    /// Totals over all layers.
    pub totals: Totals,
}

/// An image on a sealed volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The reference as given.
    pub reference: String,
    /// The normal form of the reference.
    pub name: String,
    /// Digest of the index that the tag pointed to, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Digest of the config.
    pub config: Digest,
    /// Platform in the config.
    pub platform: Platform,
    /// Chain IDs of the layers, base first.
    pub chain: Vec<ChainId>,
}

/// A layer on top of its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Chain ID, which is also the name of the layer's directory.
    pub chain_id: ChainId,
    /// Chain ID of the parent; `None` in a base layer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<ChainId>,
    /// sha256 of the tar.
    pub diff_id: Digest,
    /// Digest of the blob, as received from the registry.
    pub blob: Digest,
    /// Media type of the blob.
    pub media_type: String,
    /// Compression found in the magic bytes of the blob.
    pub compression: Compression,
    /// Size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes.
    pub size: u64,
    /// Number of members of the tar.
    pub entries: u64,
    /// Size of the tar-split file, bytes; `None` if it is not kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tar_split_size: Option<u64>,
    /// EROFS image of the layer; `None` if the layer is a directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<LayerImage>,
    /// Changes that commit made because they depend on the parents.
    #[serde(default)]
    pub settled: Settled,
    /// Attributes that an unprivileged build could not keep; only with `--rootless`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lost: Vec<Lost>,
}

/// The EROFS image of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerImage {
    /// Size of the image that is named by diff ID, bytes.
    pub size: u64,
    /// Size of the fixup image that is mounted over it for these parents, bytes; `None` if nothing depends on
    /// them. A consumer that mounts layers only by diff ID lacks the content of the fixup image.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fixup_size: Option<u64>,
    /// The dm-verity hash tree after the image that is named by diff ID, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub verity: Option<Verity>,
}

/// A dm-verity hash tree (Linux, admin-guide/device-mapper/verity.rst): sha256, blocks of 4096 bytes, a salt
/// of 32 zero bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verity {
    /// Root hash of the tree.
    pub root_hash: Digest,
    /// Offset of the tree's header in the file, bytes.
    pub hash_offset: u64,
}

impl Verity {
    /// Returns the content of the file next to the image, in the format that containerd reads.
    pub fn sidecar(&self) -> String {
        format!("{{\"roothash\":\"{}\",\"hashoffset\":{}}}\n", self.root_hash.hex(), self.hash_offset)
    }
}

/// The compression of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// No compression: the blob is the tar.
    None,
    /// gzip (RFC 1952), with one or more members.
    Gzip,
    /// Zstandard (RFC 8878), with one or more frames.
    Zstd,
}

impl Compression {
    /// Returns the compression of data by its first bytes, of which four are enough. A tar starts with the
    /// name of its first member, which cannot be the magic bytes of gzip or zstd.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame, or a skippable frame before one (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Changes that commit made to a layer because they depend on its parents. Paths are relative to the top of
/// the layer; the root is `.`, and bytes outside printable ASCII are `\xNN`. For a layer that is an image,
/// they are in the fixup image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// Directories that the tar implies but does not contain, with metadata copied from a lower layer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub inherited: Vec<String>,
    /// Opaque directories that were written as one whiteout per lower name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub opaque_as_whiteouts: Vec<String>,
    /// Files of lower layers that were copied up because a hard link refers to them.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub copied_up: Vec<String>,
}

/// An attribute that an unprivileged build could not keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Path in the layer, escaped as in [`Settled`].
    pub path: String,
    /// The lost attribute: `owner 0:33`, `device c 1:3`, `xattr security.capability`.
    pub what: String,
}

/// Totals over all layers of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Number of distinct layers.
    pub layers: u64,
    /// Number of members of all tars.
    pub entries: u64,
    /// Size of all distinct blobs, bytes.
    pub compressed_size: u64,
    /// Size of all tars, each layer once, bytes.
    pub size: u64,
}

impl CacheManifest {
    /// Seals `content` with its digest.
    ///
    /// # Errors
    /// Returns an error if JSON serialization fails.
    pub fn new(content: Content) -> Result<Self, serde_json::Error> {
        let digest = Digest::sha256(&serde_json::to_vec(&content)?);
        Ok(CacheManifest { content, digest })
    }

    /// Parses the file and checks its version and digest.
    ///
    /// # Errors
    /// Returns [`SealError`] if the file is malformed, or if its version or digest is wrong.
    pub fn parse(json: &[u8]) -> Result<Self, SealError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(json).map_err(SealError::Malformed)?;
        if version != VERSION {
            return Err(SealError::Version { given: version });
        }
        let manifest: CacheManifest = serde_json::from_slice(json).map_err(SealError::Malformed)?;
        let found = Digest::sha256(&serde_json::to_vec(&manifest.content).map_err(SealError::Malformed)?);
        if found != manifest.digest {
            return Err(SealError::Digest { want: manifest.digest, found });
        }
        Ok(manifest)
    }
}

/// The error for a `cache.json` that cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file is not JSON or has the wrong structure.
    #[error("reading cache.json: {0}")]
    Malformed(serde_json::Error),
    /// The file has a format version that this build does not support.
    #[error("cache.json has version {given}, but this larder reads version {VERSION}: use a matching larder")]
    Version {
        /// Version in the file.
        given: u32,
    },
    /// The content does not match the digest.
    #[error(
        "the content of cache.json has digest {found}, but should have {want}: the file was changed after the seal"
    )]
    Digest {
        /// Digest that the file states.
        want: Digest,
        /// Digest of the actual content.
        found: Digest,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_detected_by_magic_bytes() {
        assert_eq!(Compression::detect(&[0x1f, 0x8b]), Compression::Gzip);
        assert_eq!(Compression::detect(&[0x28, 0xb5, 0x2f, 0xfd, 0]), Compression::Zstd);
        assert_eq!(Compression::detect(&[0x5f, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        for tar in [&b""[..], &[0x1f], &[0x28, 0xb5, 0x2f], b"etc/passwd"] {
            assert_eq!(Compression::detect(tar), Compression::None, "{tar:?}");
        }
    }
}
