//! Names on a volume (see the module's drawing).

use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;

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
/// Who vouches for it.
pub const SIGNATURE: &[u8] = b"cache.json.sig";
/// The same until it is whole.
pub const SIGNATURE_UNFINISHED: &[u8] = b"cache.json.sig.tmp";
/// Tree of a layer, in its directory.
pub const DIFF: &[u8] = b"diff";
/// Short name of a layer, in its directory.
pub const LINK: &[u8] = b"link";
/// Short names of its parents, in its directory.
pub const LOWER: &[u8] = b"lower";
/// The tar-split file while its layer is staged.
pub const TAR_SPLIT: &[u8] = b"tar-split.gz";
/// Images of layers.
pub const EROFS: &[u8] = b"erofs";
/// Images by chain ID, in [`EROFS`].
pub const CHAIN: &[u8] = b"chain";
/// Tar-split files of images, in [`EROFS`].
pub const SPLITS: &[u8] = b"tar-split";
/// The image of a layer while it is staged.
pub const IMAGE: &[u8] = b"layer.erofs";
/// The image to be laid over it while it is staged.
pub const FIXUP: &[u8] = b"fixup.erofs";
/// What follows the name of an image in that of the file which says of its hash tree.
pub const VERITY: &str = ".dmverity";
/// What mkfs leaves in an empty file system.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";

/// Name of a layer's tar-split file in [`LAYERS`].
pub fn tar_split(chain_id: &ChainId) -> String {
    format!("{}.tar-split.gz", chain_id.hex())
}

/// Name of a change set's tar-split file in [`SPLITS`].
pub fn image_split(diff_id: &Digest) -> String {
    format!("{}.gz", diff_id.hex())
}

/// Where the image of a change set lies in [`EROFS`]: the directories, and its name. A layer content cache of containerd
/// is of this form.
pub fn image(diff_id: &Digest) -> ([String; 2], String) {
    let hex = diff_id.hex();
    ([diff_id.algorithm().name().to_owned(), hex[..2].to_owned()], format!("{hex}.erofs"))
}

/// Name of the image, in [`CHAIN`], that is laid over that of a change set on top of certain parents.
pub fn fixup(chain_id: &ChainId) -> String {
    format!("{}.erofs", chain_id.hex())
}

/// Paths of what a layer consists of, from the root of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Its trees, topmost first: directories or images. The last holds what its tar does.
    pub trees: Vec<String>,
    /// Its tar-split file.
    pub tar_split: String,
    /// What says of the hash tree of its image.
    pub verity: Option<String>,
}

/// Where a layer lies.
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
