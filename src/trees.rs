//! Access to the layers of a volume in either format. Their content is untrusted.

use std::fs::File;
use std::io;

use crate::volume::layout;
use larder_layer::erofs::read::ImageNode;
use larder_layer::lower::Lower;
use larder_layer::rebuild::Rebuilt;
use larder_layer::stored::StoredDir;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;
use larder_sys::Dir;

/// The error for a layer, or a part of it, that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("opening {path}: {source}")]
pub struct Error {
    /// Path from the root of the volume.
    pub path: String,
    /// Error of the system call.
    pub r#source: io::Error,
}

impl Error {
    /// Reports whether the error is that the file does not exist.
    pub fn is_missing(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Returns the class of the error, which determines the exit code.
    pub fn class(&self) -> Class {
        class(&self.source, FileRole::Sealed)
    }
}

/// Opens a regular file by its path from the root of the volume.
///
/// # Errors
/// Returns [`Error`] if the file does not exist, is not a regular file, or cannot be opened.
pub fn file(root: &Dir, path: &str) -> Result<File, Error> {
    let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
    let opened = root.open_beneath(dir.as_bytes()).and_then(|dir| dir.open_file(name.as_bytes()));
    opened.map_err(|source| Error { path: path.to_owned(), source })
}

/// Opens one of the trees of a layer by its path.
///
/// # Errors
/// Returns [`Error`] if the tree cannot be opened.
pub fn tree(root: &Dir, format: LayerFormat, path: &str) -> Result<StoredDir, Error> {
    let failed = |source| Error { path: path.to_owned(), source };
    match format {
        LayerFormat::Overlay => root.open_beneath(path.as_bytes()).map(StoredDir::Directory).map_err(failed),
        LayerFormat::Erofs => ImageNode::root(file(root, path)?).map(StoredDir::Image).map_err(failed),
    }
}

/// Opens all trees of a layer, topmost first.
///
/// # Errors
/// Returns [`Error`] if one of the trees cannot be opened.
pub fn all(root: &Dir, format: LayerFormat, layer: &Layer) -> Result<Vec<StoredDir>, Error> {
    layout::parts(format, layer).trees.iter().map(|path| tree(root, format, path)).collect()
}

/// Opens the tree with the content of the layer's tar.
///
/// # Errors
/// Returns [`Error`] if the tree cannot be opened.
pub fn own(root: &Dir, format: LayerFormat, layer: &Layer) -> Result<StoredDir, Error> {
    let paths = layout::parts(format, layer).trees;
    tree(root, format, paths.last().map_or("", String::as_str))
}

/// Opens the tar of a layer, which is rebuilt from its tree and tar-split file.
///
/// # Errors
/// Returns [`Error`] if the tree or the tar-split file cannot be opened.
pub fn tar(root: &Dir, format: LayerFormat, layer: &Layer) -> Result<Rebuilt, Error> {
    let split = file(root, &layout::parts(format, layer).tar_split)?;
    Ok(Rebuilt::new(split, own(root, format, layer)?))
}

/// Opens all layers below a layer whose parent is `parent`. `find` returns the layer of a chain ID.
///
/// # Errors
/// Returns [`Error`] if one of the trees cannot be opened.
pub fn below(
    root: &Dir,
    format: LayerFormat,
    parent: Option<&ChainId>,
    find: impl Fn(&ChainId) -> Option<Layer>,
) -> Result<Lower, Error> {
    let mut trees = Vec::new();
    let mut next = parent.and_then(&find);
    while let Some(layer) = next {
        trees.extend(all(root, format, &layer)?);
        next = layer.parent.as_ref().and_then(&find);
    }
    Ok(Lower::new(trees))
}
