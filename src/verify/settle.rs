//! Executes the plan of settling on a planned tree.

use std::collections::{BTreeMap, HashSet};

use super::error::{Error, Fault};
use super::tree::{Inode, InodeKind, Node, Tree, link_metadata};
use larder_layer::lower::Lower;
use larder_layer::metadata::{Metadata, OPAQUE_XATTR};
use larder_layer::path::{self, shown};
use larder_layer::settle::{self, Copy, Link, OwnTree, Plan};
use larder_model::chain::ChainId;
use larder_model::seal::Settled;

/// Settles `tree` on top of `lower`. The opaque directories in `claimed` are represented by whiteouts.
/// Returns the metadata of every directory, and the settled paths.
pub(super) fn settle(
    layer: &ChainId,
    tree: &mut Tree,
    lower: &Lower,
    claimed: &Settled,
) -> Result<(BTreeMap<Vec<u8>, Metadata>, Settled), Error> {
    let links = std::mem::take(&mut tree.lower_links);
    let as_whiteouts = claimed.opaque_as_whiteouts.iter().map(String::as_str).collect();
    let mut own = Claimed { nodes: &tree.nodes, as_whiteouts };
    let plan = settle::plan(&tree.directories(), links, lower, &mut own).map_err(|e| failed(layer, e))?;
    let settled = plan.settled();
    let Plan { copies, links, attributes, whiteouts, inherited, .. } = plan;
    link(layer, tree, copies, links)?;
    tree.nodes.extend(whiteouts.into_iter().map(|at| (at, Node::Whiteout)));
    Ok((describe(tree, inherited, &attributes), settled))
}

/// A planned tree, whose opaque directories are stored as `cache.json` claims.
struct Claimed<'a> {
    nodes: &'a BTreeMap<Vec<u8>, Node>,
    /// Escaped paths of the opaque directories that whiteouts represent.
    as_whiteouts: HashSet<&'a str>,
}

impl OwnTree for Claimed<'_> {
    const MASKS_OPAQUE: bool = true;

    fn contains(&mut self, path: &[u8]) -> Result<bool, larder_layer::Error> {
        Ok(self.nodes.contains_key(path))
    }

    fn has_attribute(&self, path: &[u8]) -> bool {
        !self.as_whiteouts.contains(shown(path).as_str())
    }
}

/// Adds the copies of lower files under all their names.
fn link(layer: &ChainId, tree: &mut Tree, copies: Vec<Copy>, links: Vec<Link>) -> Result<(), Error> {
    let first = tree.inodes.len();
    for Copy { path: original, keeps_path, metadata, .. } in copies {
        let inode = tree.inodes.len();
        if keeps_path {
            tree.make_parents(path::split(&original).0)
                .map_err(|fault| Error::layer(layer, &original, Fault::Statement(fault.to_string())))?;
            tree.nodes.insert(original.clone(), Node::Inode(inode));
        }
        tree.inodes.push(Inode { kind: InodeKind::CopiedUp(original), metadata });
    }
    for Link { path: at, copy, metadata } in links {
        let inode = &mut tree.inodes[first + copy];
        inode.metadata = link_metadata(inode, metadata);
        tree.nodes.insert(at, Node::Inode(first + copy));
    }
    Ok(())
}

/// Returns the metadata of every directory. Those in `marked` have the opaque attribute.
fn describe(
    tree: &Tree,
    mut inherited: BTreeMap<Vec<u8>, Metadata>,
    marked: &[Vec<u8>],
) -> BTreeMap<Vec<u8>, Metadata> {
    let mut described = BTreeMap::new();
    for (at, directory) in tree.directories() {
        let from_below = inherited.remove(&at);
        described.insert(at, directory.metadata.or(from_below).unwrap_or_else(Metadata::implied));
    }
    for at in marked {
        if let Some(metadata) = described.get_mut(at) {
            metadata.xattrs.push((OPAQUE_XATTR.to_vec(), b"y".to_vec()));
            metadata.xattrs.sort();
        }
    }
    described
}

fn failed(layer: &ChainId, error: larder_layer::Error) -> Error {
    match error {
        larder_layer::Error::Io { doing, path, source } => Error::io(doing, path, source),
        larder_layer::Error::Hostile { fault, .. } => {
            Error::Layer { layer: layer.clone(), message: fault.to_string() }
        }
        error @ larder_layer::Error::Full { .. } => {
            Error::Layer { layer: layer.clone(), message: error.to_string() }
        }
    }
}
