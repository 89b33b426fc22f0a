//! Verification of a sealed volume from its own bytes.
//!
//! For each layer, parents first, the tar is rebuilt from its tar-split file and the files on disk. It must
//! have the diff ID in the image's config. A separate implementation plans the members of that tar again in
//! memory (`tree`), and every inode on disk must match the plan (`compare`). Index files are computed again
//! (`index`), and `prefetch.list` from the verified layers. An unexpected name is a difference, and so is a
//! directory or file that another user could change (`structure`). The first difference is reported.
//!
//! An EROFS layer is instead written a second time, from the tar that was rebuilt from it, and every block is
//! compared (`image`). Any changed bit of the image makes one of these two checks fail.

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

use crate::volume::store::Documents;
use crate::{trees, volume};
use compare::Names;
use image::Images;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::key::KeyId;
use larder_model::seal::{Content, Layer};
use larder_model::trust::Trust;
use larder_sys::Dir;

/// Result of a successful verification.
#[derive(Clone, Debug)]
pub struct Report {
    /// Number of images verified.
    pub images: usize,
    /// Number of layers verified.
    pub layers: usize,
    /// Number of members in all tars.
    pub entries: u64,
    /// Size of all tars, in bytes.
    pub bytes: u64,
    /// Digest of the content of `cache.json`.
    pub digest: Digest,
    /// The key that signed the volume, if it is signed.
    pub signed_by: Option<KeyId>,
}

/// Verifies `layers` of an unsealed volume at `path`. They must be in order, parents before children. Nothing
/// else on the volume is checked.
///
/// # Errors
/// The first difference from the records of the layers.
pub fn layers(path: &Path, format: LayerFormat, layers: &[Layer]) -> Result<(), Error> {
    let root = Dir::open(path).map_err(|source| Error::io("opening the volume", path.display(), source))?;
    each(&root, format, layers).map(drop)
}

/// Returns the layers in `doubtful` that do not match their records, with the reason, on an unsealed volume.
/// A layer without a tar-split file is only opened. `layers` are all layers of the volume, parents before
/// children. Children of a damaged layer are skipped. Once `stop` returns `true`, no further layer is
/// checked.
///
/// # Errors
/// Images cannot be compared, because no temporary file can be created.
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
            // Hard links from other volumes do not matter before the seal, only the content.
            None => layer::verify(root, layers, layer, &mut Names::default()),
            Some(images) => images.verify(layer),
        };
        if let Err(error) = proven {
            damaged.push((layer.chain_id.clone(), error));
        }
    }
    Ok(damaged)
}

/// Reads the manifest and config of every image of a volume. Checks them against their digests, and the
/// images and layers in `content` against them.
///
/// # Errors
/// The first difference.
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

/// Verifies the volume at `path`, including its signature if it has one. Any key is accepted.
///
/// # Errors
/// The first difference from `cache.json`.
pub fn verify(path: &Path) -> Result<Report, Error> {
    verify_trusting(path, &Trust::default())
}

/// Verifies the volume at `path`, including its signature as `trust` requires.
///
/// # Errors
/// The first difference from `cache.json`, and a signature that `trust` does not accept.
pub fn verify_trusting(path: &Path, trust: &Trust) -> Result<Report, Error> {
    verify_by(path, trust, false, Structure::of_path(path)?)
}

/// Verifies a volume as [`verify_for_use`] does, in a confined process. `structure` must be determined before
/// confinement.
///
/// # Errors
/// The first difference from `cache.json`.
pub fn verify_for_use_confined(path: &Path, structure: Structure) -> Result<Report, Error> {
    verify_by(path, &Trust::default(), true, structure)
}

/// Verifies a volume as [`verify_trusting`] does, in a confined process. `structure` must be determined
/// before confinement.
///
/// # Errors
/// The first difference from `cache.json`, and a signature that `trust` does not accept.
pub fn verify_confined(path: &Path, trust: &Trust, structure: Structure) -> Result<Report, Error> {
    verify_by(path, trust, false, structure)
}

/// Verifies the volume at `path` before it is used. Unlike [`verify_trusting`], it checks EROFS images by
/// their hash trees if all of them have one, which takes as long as reading them.
///
/// # Errors
/// The first difference from `cache.json`, and a signature that `trust` does not accept.
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
