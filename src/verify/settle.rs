//! Settling of a planned tree, by the same rules as in the sink.

use std::collections::{BTreeMap, HashSet};

use super::error::{Error, Fault};
use super::tree::{Inode, InodeKind, Node, Tree, link_metadata};
use larder_layer::overlay::lower::{self, Lower, LowerEntry};
use larder_layer::overlay::settle::{hidden, inherited, is_hidden};
use larder_layer::overlay::{Directory, Metadata, OPAQUE_XATTR, copy};
use larder_layer::path::{self, escape, shown};
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
    let mut settled = Settled::default();
    links(layer, tree, lower, &mut settled)?;
    let whiteouts: HashSet<&str> = claimed.opaque_as_whiteouts.iter().map(String::as_str).collect();
    let directories = tree.directories();
    let mut marked = HashSet::new();
    for (at, _) in directories.iter().filter(|(_, directory)| directory.hides_lower()) {
        let name = shown(at);
        if !at.is_empty() && !whiteouts.contains(name.as_str()) {
            marked.insert(at.clone());
            continue;
        }
        if !is_hidden(&directories, at) {
            mask(tree, lower, at)?;
        }
        settled.opaque_as_whiteouts.push(name);
    }
    let hidden = hidden(&directories);
    let mut described = BTreeMap::new();
    for (at, directory) in &directories {
        let from_below = inherited(directory, hidden.contains(at), at, lower)
            .map_err(|e| Error::Layer { layer: layer.clone(), message: e.to_string() })?;
        if from_below.is_some() {
            settled.inherited.push(shown(at));
        }
        let mut metadata = directory.metadata.clone().or(from_below).unwrap_or_else(Metadata::implied);
        if marked.contains(at) {
            metadata.xattrs.push((OPAQUE_XATTR.to_vec(), b"y".to_vec()));
            metadata.xattrs.sort();
        }
        described.insert(at.clone(), metadata);
    }
    Ok((described, settled))
}

fn links(layer: &ChainId, tree: &mut Tree, lower: &Lower, settled: &mut Settled) -> Result<(), Error> {
    let directories = tree.directories();
    let mut copied: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for (at, link) in std::mem::take(&mut tree.lower_links) {
        let found = lower.link_target(&link.target).map_err(|e| look(&link.target, e))?;
        let Some(lower::LinkTarget { path: resolved, dir, stat }) = found else {
            let fault = larder_layer::error::Fault::LinkMissing(escape(&link.target));
            return Err(Error::Layer { layer: layer.clone(), message: fault.to_string() });
        };
        let inode = match copied.get(&resolved) {
            Some(inode) => *inode,
            None => {
                let name = path::split(&resolved).1;
                let metadata = copy::metadata_of(&dir, name, &stat).map_err(|e| look(&resolved, e))?;
                tree.inodes.push(Inode { kind: InodeKind::CopiedUp(resolved.clone()), metadata });
                let inode = tree.inodes.len() - 1;
                if is_free(tree, &directories, &resolved) {
                    let parents = path::split(&resolved).0;
                    tree.make_parents(parents).map_err(|f| hostile(layer, &resolved, &f))?;
                    tree.nodes.insert(resolved.clone(), Node::Inode(inode));
                }
                settled.copied_up.push(shown(&resolved));
                copied.insert(resolved, inode);
                inode
            }
        };
        tree.inodes[inode].metadata = link_metadata(&tree.inodes[inode], link.metadata);
        let parent = tree.make_parents(path::split(&at).0).map_err(|f| hostile(layer, &at, &f))?;
        let at = path::join(&parent, path::split(&at).1);
        tree.nodes.insert(at, Node::Inode(inode));
    }
    Ok(())
}

/// Reports whether a lower name is still visible through this layer, so that its copy can have the same name.
fn is_free(tree: &Tree, directories: &BTreeMap<Vec<u8>, Directory>, resolved: &[u8]) -> bool {
    if is_hidden(directories, resolved) {
        return false;
    }
    let mut at = Vec::new();
    for component in path::components(resolved) {
        path::push(&mut at, component);
        match tree.nodes.get(&at) {
            None => return true,
            Some(Node::Directory(_)) => {}
            Some(_) => return false,
        }
    }
    false
}

fn mask(tree: &mut Tree, lower: &Lower, top: &[u8]) -> Result<(), Error> {
    let mut pending = vec![top.to_vec()];
    while let Some(at) = pending.pop() {
        let LowerEntry::Directory(parts) = lower.show(&at).map_err(|e| look(&at, e))? else { continue };
        for name in lower::names(&parts).map_err(|e| look(&at, e))? {
            let child = path::join(&at, &name);
            match tree.nodes.get(&child) {
                Some(Node::Directory(_)) => pending.push(child),
                Some(_) => {}
                None => {
                    tree.nodes.insert(child, Node::Whiteout);
                }
            }
        }
    }
    Ok(())
}

fn look(path: &[u8], source: std::io::Error) -> Error {
    Error::io("searching the parent layers for", escape(path), source)
}

fn hostile(layer: &ChainId, path: &[u8], fault: &larder_layer::error::Fault) -> Error {
    Error::layer(layer, path, Fault::Statement(fault.to_string()))
}
