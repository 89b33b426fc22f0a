//! A layer that was applied without its parents: what remains to be settled on top of them.

use std::collections::BTreeMap;

use super::metadata::Metadata;
use larder_model::seal::Lost;

/// A directory of a layer that is being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Metadata from the tar; `None` if the tar only implies the directory.
    pub metadata: Option<Metadata>,
    /// `true` if it hides the entries of lower layers in it.
    pub opaque: bool,
    /// `true` if it was whited out and created again in this layer, so that it hides the lower directory
    /// itself too.
    pub recreated: bool,
}

impl Directory {
    /// Reports whether lower names are not visible through the directory.
    pub fn hides_lower(&self) -> bool {
        self.opaque || self.recreated
    }
}

/// The result of applying a layer: the parts that remain to be settled, and counts.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// All directories of the layer by path; the root is the empty path.
    pub directories: BTreeMap<Vec<u8>, Directory>,
    /// Names that are hard links to files of lower layers.
    pub lower_links: BTreeMap<Vec<u8>, LowerLink>,
    /// Number of members in the tar.
    pub entries: u64,
    /// Metadata that an unprivileged build could not store.
    pub lost: Vec<Lost>,
}

/// A hard link to a file that the layer itself does not contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowerLink {
    /// Clean path of the target, to be resolved in the layers below.
    pub target: Vec<u8>,
    /// Metadata of the inode from the link member.
    pub metadata: Metadata,
}
