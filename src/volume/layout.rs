//! File names on a volume (see the drawing in the module documentation).

use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;

/// Directory for Larder's own files.
pub const LARDER: &[u8] = b".larder";
/// Lock that a builder holds as long as it runs.
pub const LOCK: &[u8] = b"lock";
/// Lock of readers, and exclusively of the process that deletes the volume ([`lease`](super::lease)).
pub const USE: &[u8] = b"use";
/// The job and the digests to which its references were resolved.
pub const JOB: &[u8] = b"job.json";
/// The journal of committed and durable layers.
pub const JOURNAL: &[u8] = b"journal";
/// Directory for layers that are being written.
pub const STAGING: &[u8] = b"staging";
/// Directory of the layer directories.
pub const OVERLAY: &[u8] = b"overlay";
/// Directory of the short names of layers, in [`OVERLAY`].
pub const LINKS: &[u8] = b"l";
/// Directory of the records of layers.
pub const LAYERS: &[u8] = b"overlay-layers";
/// Directory of the records of images.
pub const IMAGES: &[u8] = b"overlay-images";
/// Directory of the OCI image layout.
pub const OCI: &[u8] = b"oci";
/// File with the chain IDs and their directories, one per line.
pub const SNAPSHOTS: &[u8] = b"snapshots.metadata";
/// Files that starting containers read first, image by image.
pub const PREFETCH: &str = "prefetch.list";
/// The seal of the volume.
pub const CACHE: &[u8] = b"cache.json";
/// The signature of the seal.
pub const SIGNATURE: &[u8] = b"cache.json.sig";
/// The signature while it is being written.
pub const SIGNATURE_UNFINISHED: &[u8] = b"cache.json.sig.tmp";
/// Directory tree of a layer, in its directory.
pub const DIFF: &[u8] = b"diff";
/// Short name of a layer, in its directory.
pub const LINK: &[u8] = b"link";
/// Short names of a layer's parents, in its directory.
pub const LOWER: &[u8] = b"lower";
/// The tar-split file while its layer is staged.
pub const TAR_SPLIT: &[u8] = b"tar-split.gz";
/// Directory of the images of layers.
pub const EROFS: &[u8] = b"erofs";
/// Directory of images by chain ID, in [`EROFS`].
pub const CHAIN: &[u8] = b"chain";
/// Directory of the tar-split files of images, in [`EROFS`].
pub const SPLITS: &[u8] = b"tar-split";
/// The image of a layer while it is staged.
pub const IMAGE: &[u8] = b"layer.erofs";
/// The image to mount over a layer's image, while it is staged.
pub const FIXUP: &[u8] = b"fixup.erofs";
/// Suffix of the file that describes the hash tree of an image.
pub const VERITY: &str = ".dmverity";
/// Directory that mkfs creates in an empty file system.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Returns the name of a layer's tar-split file in [`LAYERS`].
pub fn tar_split(chain_id: &ChainId) -> String {
    format!("{}.tar-split.gz", chain_id.hex())
}

/// Returns the name of a change set's tar-split file in [`SPLITS`].
pub fn image_split(diff_id: &Digest) -> String {
    format!("{}.gz", diff_id.hex())
}

/// Returns the location of a change set's image in [`EROFS`]: the directories and the file name. containerd's
/// layer content cache has the same layout.
pub fn image(diff_id: &Digest) -> ([String; 2], String) {
    let hex = diff_id.hex();
    ([diff_id.algorithm().name().to_owned(), hex[..2].to_owned()], format!("{hex}.erofs"))
}

/// Returns the name in [`CHAIN`] of the image that is mounted over the image of a change set on top of
/// particular parents.
pub fn fixup(chain_id: &ChainId) -> String {
    format!("{}.erofs", chain_id.hex())
}

/// Paths of the files of a layer, relative to the root of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Directory trees or images of the layer, topmost first. The last one has the content of its tar.
    pub trees: Vec<String>,
    /// Path of the tar-split file.
    pub tar_split: String,
    /// Path of the description of the image's hash tree.
    pub verity: Option<String>,
}

/// Returns the paths of a layer.
pub fn parts(format: LayerFormat, layer: &Layer) -> Parts {
    match format {
        LayerFormat::Overlay => Parts {
            trees: vec![format!("overlay/{}/diff", layer.chain_id.hex())],
            tar_split: format!("overlay-layers/{}", tar_split(&layer.chain_id)),
            verity: None,
        },
        LayerFormat::Erofs => {
            let ([algorithm, prefix], name) = image(&layer.diff_id);
            let has_fixup = layer.image.as_ref().is_some_and(|image| image.fixup_size.is_some());
            let fixup = has_fixup.then(|| format!("erofs/chain/{}", fixup(&layer.chain_id)));
            let image = format!("erofs/{algorithm}/{prefix}/{name}");
            let has_verity = layer.image.as_ref().is_some_and(|image| image.verity.is_some());
            let verity = has_verity.then(|| format!("{image}{VERITY}"));
            Parts {
                trees: fixup.into_iter().chain([image]).collect(),
                tar_split: format!("erofs/tar-split/{}", image_split(&layer.diff_id)),
                verity,
            }
        }
    }
}
