//! Names on a volume (see the module's drawing).

use crate::model::chain::ChainId;

/// Our own directory.
pub const LARDER: &[u8] = b".larder";
/// Held for the life of a builder.
pub const LOCK: &[u8] = b"lock";
/// Held by those who read the volume, and alone by who removes it ([`lease`](super::lease)).
pub const USE: &[u8] = b"use";
/// The job and what its references were resolved to.
pub const JOB: &[u8] = b"job.json";
/// What is committed and what is durable.
pub const JOURNAL: &[u8] = b"journal";
/// Layers in flight.
pub const STAGING: &[u8] = b"staging";
/// Layer directories.
pub const OVERLAY: &[u8] = b"overlay";
/// Short names of layers, in [`OVERLAY`].
pub const LINKS: &[u8] = b"l";
/// Records of layers.
pub const LAYERS: &[u8] = b"overlay-layers";
/// Records of images.
pub const IMAGES: &[u8] = b"overlay-images";
/// The OCI image layout.
pub const OCI: &[u8] = b"oci";
/// Chain IDs and their directories, a line each.
pub const SNAPSHOTS: &[u8] = b"snapshots.metadata";
/// What starts read first, an image after the other.
pub const PREFETCH: &str = "prefetch.list";
/// The seal.
pub const CACHE: &[u8] = b"cache.json";
/// Tree of a layer, in its directory.
pub const DIFF: &[u8] = b"diff";
/// Short name of a layer, in its directory.
pub const LINK: &[u8] = b"link";
/// Short names of its parents, in its directory.
pub const LOWER: &[u8] = b"lower";
/// The tar-split file while its layer is staged.
pub const TAR_SPLIT: &[u8] = b"tar-split.gz";
/// What mkfs leaves in an empty file system.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Name of a layer's tar-split file in [`LAYERS`].
pub fn tar_split(chain_id: &ChainId) -> String {
    format!("{}.tar-split.gz", chain_id.hex())
}
