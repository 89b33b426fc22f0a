//! Layers that are images against the tops of their dm-verity hash trees in `cache.json`: one reading of each, no decoding. It
//! finds every changed bit of an image, as [`verify`](super::verify) does, in the time that the disk takes, and without
//! tar-split files; of names and of the rest of the volume it says nothing.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use super::error::{Error, Fault};
use crate::layer::erofs::check_hash_tree;
use crate::model::job::LayerFormat;
use crate::model::seal::{Content, LayerImage, Verity};
use crate::sys::Dir;
use crate::trees;
use crate::volume::layout;

/// What hash trees prove, and what they do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HashTrees {
    /// Images that are what their trees say.
    pub proven: usize,
    /// Bytes of them, trees included.
    pub bytes: u64,
    /// Paths on the volume of layers, and of what is laid over layers, without a tree: nothing was read of them.
    pub without: Vec<String>,
}

/// Compares every layer of the volume at `path` with its hash tree. `content` is that of its `cache.json`, which is believed:
/// check its signature first.
///
/// # Errors
/// The first image that is not what its tree says, of class Corrupt.
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

fn check(root: &Dir, path: &str, size: u64, verity: &Verity) -> Result<(), Error> {
    let file = trees::file(root, path).map_err(|e| match e.source.kind() {
        ErrorKind::NotFound => Error::volume(&e.path, Fault::Missing),
        _ => Error::io("opening", &e.path, e.source),
    })?;
    let found = file.metadata().map_err(|e| Error::io("examining", path, e))?.len();
    if found != size {
        return Err(Error::volume(path, Fault::Size { want: size, found }));
    }
    check_hash_tree(&file, size, verity).map_err(|e| match e.kind() {
        ErrorKind::InvalidData => Error::volume(path, Fault::Image(e.to_string())),
        _ => Error::io("reading", path, e),
    })
}
