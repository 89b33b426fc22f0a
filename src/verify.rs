//! Proves a sealed volume from its own bytes.
//!
//! For each layer, parents first, the tar is rebuilt from its tar-split file and the files on disk, and must have the diff
//! ID that the image's config names. The members of that tar are planned again, in memory and by code of its own
//! (`tree`), and every inode on disk must be what the plan says (`compare`). Index files are computed again
//! (`index`), `prefetch.list` from the layers once they are proven. A name that nothing explains is a difference like any other,
//! and so is a directory or file that another user could change (`structure`). The first difference is reported.
//!
//! A layer that is an EROFS image is written a second time instead, from the tar that was rebuilt from it, and every block
//! compared (`image`): whatever bit of it was changed, one of the two differs.

pub mod apart;
mod compare;
mod content;
mod error;
mod hash_tree;
mod image;
mod index;
mod layer;
mod settle;
mod structure;
mod tree;

use std::path::Path;

pub use error::{Error, Fault};
pub use hash_tree::{HashTrees, hash_trees};
pub use structure::Structure;

use crate::trees;
use crate::volume;
use crate::volume::store::Documents;
use compare::Names;
use image::Images;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::key::KeyId;
use larder_model::seal::{Content, Layer};
use larder_model::trust::Trust;
use larder_sys::Dir;

/// What was proven.
#[derive(Clone, Debug)]
pub struct Report {
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Members of all tars.
    pub entries: u64,
    /// Bytes of all tars.
    pub bytes: u64,
    /// Digest of the content of `cache.json`.
    pub digest: Digest,
    /// Who signed it, where somebody did.
    pub signed_by: Option<KeyId>,
}

/// Verifies `layers`, parents before children, of a volume at `path` that is not sealed yet. Nothing is said of what else is
/// on it.
pub fn layers(path: &Path, format: LayerFormat, layers: &[Layer]) -> Result<(), Error> {
    let root = Dir::open(path).map_err(|source| Error::io("opening the volume", path.display(), source))?;
    each(&root, format, layers).map(drop)
}

/// Returns those of `doubtful` that are not what their records say, with the reason, on a volume that is not sealed yet. A layer
/// that has no tar-split file only has to open. `layers` are all of the volume, parents before children; a child of a
/// damaged layer is not looked at. Once `stop` says so, no further layer is.
///
/// # Errors
/// Images cannot be compared here, because no temporary file can be made.
pub fn damaged(
    root: &Dir,
    format: LayerFormat,
    layers: &[Layer],
    doubtful: &[ChainId],
    stop: impl Fn() -> bool,
) -> Result<Vec<(ChainId, Error)>, Error> {
    let mut images = match format {
        LayerFormat::Overlay => None,
        LayerFormat::Erofs => Some(Images::new(root, layers)?),
    };
    let mut damaged: Vec<(ChainId, Error)> = Vec::new();
    for layer in layers.iter().filter(|layer| doubtful.contains(&layer.chain_id)) {
        if stop() {
            break;
        }
        if damaged.iter().any(|(id, _)| layer.parent.as_ref() == Some(id)) {
            continue;
        }
        let proven = match &mut images {
            _ if layer.tar_split_size.is_none() => trees::own(root, format, layer)
                .map(|_| ())
                .map_err(|e| Error::Layer { layer: layer.chain_id.clone(), message: e.to_string() }),
            // Names that other volumes have are no matter before the seal: what counts is the content.
            None => layer::verify(root, layers, layer, &mut Names::default()),
            Some(images) => images.verify(layer),
        };
        if let Err(error) = proven {
            damaged.push((layer.chain_id.clone(), error));
        }
    }
    Ok(damaged)
}

/// Reads the manifests and configs of a volume, one of each for every image, and checks them against their digests and what
/// `content` says of images and layers against them.
pub fn documents(root: &Dir, content: &Content) -> Result<Vec<Documents>, Error> {
    index::documents(root, content)
}

/// Verifies each layer, and returns the files with several names.
fn each(root: &Dir, format: LayerFormat, layers: &[Layer]) -> Result<Names, Error> {
    let mut names = Names::default();
    match format {
        LayerFormat::Overlay => {
            layers.iter().try_for_each(|layer| layer::verify(root, layers, layer, &mut names))?;
        }
        LayerFormat::Erofs => {
            let mut images = Images::new(root, layers)?;
            layers.iter().try_for_each(|layer| images.verify(layer))?;
        }
    }
    Ok(names)
}

/// Verifies the volume at `path`, its signature included where there is one, whoever signed.
pub fn verify(path: &Path) -> Result<Report, Error> {
    verify_trusting(path, &Trust::default())
}

/// Verifies the volume at `path`, which has to be one that `trust` asks for.
pub fn verify_trusting(path: &Path, trust: &Trust) -> Result<Report, Error> {
    verify_by(path, trust, false, Structure::of_path(path)?)
}

/// Does what [`verify_for_use`] does, in a process that is confined. `structure` was taken before.
///
/// # Errors
/// The first difference from what `cache.json` says.
pub fn verify_for_use_confined(path: &Path, structure: Structure) -> Result<Report, Error> {
    verify_by(path, &Trust::default(), true, structure)
}

/// Does what [`verify_trusting`] does, in a process that is confined. `structure` was taken before.
///
/// # Errors
/// The first difference from what `cache.json` says, and a signature that `trust` does not accept.
pub fn verify_confined(path: &Path, trust: &Trust, structure: Structure) -> Result<Report, Error> {
    verify_by(path, trust, false, structure)
}

/// Verifies the volume at `path` for those who are going to use it: as [`verify_trusting`] does, but EROFS images by their hash
/// trees if all of them have one, which takes as long as reading them.
pub fn verify_for_use(path: &Path, trust: &Trust) -> Result<Report, Error> {
    verify_by(path, trust, true, Structure::of_path(path)?)
}

fn verify_by(path: &Path, trust: &Trust, by_trees: bool, structure: Structure) -> Result<Report, Error> {
    let shown = path.display().to_string();
    let root = Dir::open(path).map_err(|source| Error::io("opening the volume", &shown, source))?;
    let (sealed, signed_by) = volume::read_trusted(path, trust)?;
    let content = &sealed.content;
    let by_trees = by_trees && content.layer_format == LayerFormat::Erofs && hash_tree::cover(content);
    if !content.tar_split && !by_trees {
        return Err(Error::NoTarSplit { path: shown });
    }
    let documents = index::documents(&root, content)?;
    index::check(&root, &sealed, &documents, structure)?;
    match by_trees {
        true => {
            hash_trees(path, content)?;
            if content.tar_split {
                hash_tree::tar_splits(&root, content)?;
            }
        }
        false => each(&root, content.layer_format, &content.layers)?.check()?,
    }
    index::check_prefetch(&root, content, &documents)?;
    Ok(Report {
        images: content.images.len(),
        layers: content.layers.len(),
        entries: content.layers.iter().map(|layer| layer.entries).sum(),
        bytes: content.layers.iter().map(|layer| layer.size).sum(),
        digest: sealed.digest.clone(),
        signed_by,
    })
}
