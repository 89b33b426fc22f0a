//! Verification of EROFS layers against the root hashes of their dm-verity hash trees in `cache.json`. Each
//! image is read once without decoding. Every changed bit of an image is found, as by
//! [`verify`](super::verify), as fast as the disk allows and without tar-split files. Names and the rest of
//! the volume are not checked.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use super::error::{Error, Fault};
use crate::trees;
use crate::volume::layout;
use larder_layer::decode::ChunkSource as _;
use larder_layer::erofs::check_hash_tree;
use larder_model::digest::Hasher;
use larder_model::job::LayerFormat;
use larder_model::seal::{Content, LayerImage, Verity};
use larder_sys::Dir;

/// Result of a verification by hash trees, including the layers that it does not cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashTrees {
    /// Number of images that match their trees.
    pub proven: usize,
    /// Size of these images in bytes, trees included.
    pub bytes: u64,
    /// Paths on the volume of images without a tree, which were not read. This includes images that are
    /// mounted over layers.
    pub without: Vec<String>,
}

/// Compares every layer of the volume at `path` with its hash tree. `content` is that of its `cache.json`,
/// which is trusted: check its signature first.
///
/// # Errors
/// The first image that does not match its tree, of class Corrupt.
pub fn hash_trees(path: &Path, content: &Content) -> Result<HashTrees, Error> {
    let root = Dir::open(path).map_err(|source| Error::io("opening the volume", path.display(), source))?;
    let mut report = HashTrees::default();
    let mut seen = BTreeSet::new();
    for layer in &content.layers {
        let parts = layout::parts(content.layer_format, layer);
        let Some((own, over)) = parts.trees.split_last() else { continue };
        report.without.extend_from_slice(over);
        if !seen.insert(own.clone()) {
            continue;
        }
        match (content.layer_format, &layer.image) {
            (LayerFormat::Erofs, Some(LayerImage { size, verity: Some(verity), .. })) => {
                check(&root, own, *size, verity)?;
                report.proven += 1;
                report.bytes += size;
            }
            _ => report.without.push(own.clone()),
        }
    }
    Ok(report)
}

/// Rebuilds the tar of every layer and compares its digest. Together with hash trees this verifies the
/// tar-split files.
pub(super) fn tar_splits(root: &Dir, content: &Content) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for layer in content.layers.iter().filter(|layer| seen.insert(&layer.diff_id)) {
        let fail = |message: String| Error::Layer { layer: layer.chain_id.clone(), message };
        let path = layout::parts(content.layer_format, layer).tar_split;
        let size = trees::file(root, &path).map_err(|e| Error::opening(&e.path, &e.source))?.metadata();
        let found = size.map_err(|e| Error::io("examining", &path, e))?.len();
        let want = layer.tar_split_size.unwrap_or_default();
        if found != want {
            return Err(Error::volume(&path, Fault::Size { want, found }));
        }
        let mut tar =
            trees::tar(root, content.layer_format, layer).map_err(|e| Error::opening(&e.path, &e.source))?;
        let mut hasher = Hasher::new(layer.diff_id.algorithm());
        while let Some(chunk) = tar.next().map_err(|e| fail(e.to_string()))? {
            hasher.update(&chunk);
        }
        let found = hasher.finish();
        if found != layer.diff_id {
            return Err(fail(format!(
                "the rebuilt tar has digest {found}, but its diff ID is {}",
                layer.diff_id
            )));
        }
    }
    Ok(())
}

/// Reports whether every image of a layer, including those mounted over one, has a hash tree.
pub(super) fn cover(content: &Content) -> bool {
    let covers = |image: &LayerImage| image.verity.is_some() && image.fixup_size.is_none();
    content.layers.iter().all(|layer| layer.image.as_ref().is_some_and(covers))
}

fn check(root: &Dir, path: &str, size: u64, verity: &Verity) -> Result<(), Error> {
    let file = trees::file(root, path).map_err(|e| Error::opening(&e.path, &e.source))?;
    let found = file.metadata().map_err(|e| Error::io("examining", path, e))?.len();
    if found != size {
        return Err(Error::volume(path, Fault::Size { want: size, found }));
    }
    check_hash_tree(&file, size, verity).map_err(|e| match e.kind() {
        ErrorKind::InvalidData => Error::volume(path, Fault::Image(e.to_string())),
        _ => Error::io("reading", path, e),
    })
}
