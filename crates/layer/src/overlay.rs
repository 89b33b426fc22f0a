//! The `overlay` sink: a layer as a directory tree in overlayfs form (Linux, filesystems/overlayfs.rst).
//!
//! ```text
//! tar ──► apply ──► staging/diff (without parents) ──► settle (against the layers below) ──► commit
//! ```
//!
//! [`apply`] knows only the layer itself. What depends on the layers below is noted in [`Applied`] and done by
//! [`settle`] when they are on the volume: metadata of directories that the tar implies, hard links to lower files,
//! opaque directories where their attribute cannot be written.

pub mod apply;
pub mod attributes;
mod contents;
pub mod copy;
mod growth;
pub mod lower;
pub mod replaced;
pub mod settle;
mod tree;

use std::collections::BTreeMap;

pub use super::metadata::{IMPLIED_MODE, Metadata};
use larder_model::seal;

/// Attribute by which overlayfs knows an opaque directory.
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// Mode while a layer is being written: nobody else looks in.
const STAGING_MODE: u32 = 0o700;

/// A directory of the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// What the tar says of it; nothing where the tar only implies it.
    pub metadata: Option<Metadata>,
    /// It hides what the layers below have in it.
    pub opaque: bool,
    /// It was whited out and made again in this layer: it hides the lower directory itself too.
    pub recreated: bool,
}

impl Directory {
    /// Whether lower names do not show through it.
    pub fn hides_lower(&self) -> bool {
        self.opaque || self.recreated
    }
}

/// What applying a layer leaves to be settled, and what it counted.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Every directory of the layer by its path; the root is the empty path.
    pub directories: BTreeMap<Vec<u8>, Directory>,
    /// Names that are hard links to files of lower layers, with the path of the file.
    pub lower_links: BTreeMap<Vec<u8>, LowerLink>,
    /// Members of the tar.
    pub entries: u64,
    /// What an unprivileged build could not keep.
    pub lost: Vec<seal::Lost>,
}

/// A hard link to a file that the layer itself does not contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerLink {
    /// Clean path of the target, to be looked up in the layers below.
    pub target: Vec<u8>,
    /// What the link member says of the inode.
    pub metadata: Metadata,
}
