//! Executes the plan of [`crate::settle`] on a directory tree.
//!
//! This code never changes an inode of a lower layer, or a non-directory of this layer, because those may be
//! shared.

use std::collections::BTreeMap;
use std::mem;

use super::super::applied::{Applied, Directory};
use super::super::error::{Context, Error, Fault};
use super::super::lower::{Lower, LowerEntry};
use super::super::metadata::{Metadata, OPAQUE_XATTR};
use super::super::path::{self, escape};
use super::super::settle::{self, Copy, Link, OwnTree};
use super::super::space::Space;
use super::attributes::{Rights, Writer};
use super::copy;
use super::tree::Tree;
use larder_model::seal::{Lost, Settled};
use larder_sys::Dir;

/// Settles the tree in `diff` on top of `lower`, and returns what that changed.
///
/// # Errors
/// [`Error::Hostile`] for a link without a target, [`Error::Full`] or [`Error::Io`].
pub fn settle(
    diff: Dir,
    applied: &mut Applied,
    lower: &Lower,
    space: &dyn Space,
    rights: Rights,
) -> Result<Settled, Error> {
    let mut tree = Tree::new(diff, space)?;
    let directories = mem::take(&mut applied.directories);
    let links = mem::take(&mut applied.lower_links);
    let plan = settle::plan(&directories, links, lower, &mut Staged { tree: &mut tree, rights })?;
    let settled = plan.settled();
    tree.directories = directories;
    let mut settling = Settling { tree, lower, space, rights, lost: Vec::new() };
    settling.links(&plan.copies, &plan.links)?;
    plan.attributes.iter().try_for_each(|path| settling.mark(path))?;
    plan.whiteouts.iter().try_for_each(|path| settling.whiteout(path))?;
    settling.directories(plan.inherited)?;
    let Settling { tree, mut lost, .. } = settling;
    applied.directories = tree.finish()?;
    applied.lost.append(&mut lost);
    Ok(settled)
}

/// A layer in its staging directory.
struct Staged<'t, 'a> {
    tree: &'t mut Tree<'a>,
    rights: Rights,
}

impl OwnTree for Staged<'_, '_> {
    const MASKS_OPAQUE: bool = true;

    fn contains(&mut self, path: &[u8]) -> Result<bool, Error> {
        let (parent, name) = path::split(path);
        let found = self.tree.open(parent)?.dir.try_stat(name).context("examining", path)?;
        Ok(found.is_some())
    }

    fn has_attribute(&self, _: &[u8]) -> bool {
        self.rights.trusted
    }
}

struct Settling<'a> {
    tree: Tree<'a>,
    lower: &'a Lower,
    space: &'a dyn Space,
    rights: Rights,
    lost: Vec<Lost>,
}

impl Settling<'_> {
    fn links(&mut self, copies: &[Copy], links: &[Link]) -> Result<(), Error> {
        // The path of each copy that exists. Links to the same file share its inode.
        let mut made: Vec<Option<&[u8]>> = vec![None; copies.len()];
        for Link { path: at, copy: index, metadata } in links {
            let copy = &copies[*index];
            let first = match made[*index] {
                Some(first) => first,
                None => {
                    let first = if copy.keeps_path { copy.path.as_slice() } else { at };
                    self.copy_up(copy, first)?;
                    *made[*index].insert(first)
                }
            };
            if first != at {
                let source = self.tree.parent(first)?;
                let first_name = path::split(first).1;
                self.name(at, |dir, name| source.dir.link(first_name, dir, name).context("linking", at))?;
            }
            let parent = self.tree.parent(at)?;
            let name = path::split(at).1;
            let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
            self.tree.attributes(
                metadata.xattr_bytes(),
                at,
                || parent.dir.stat(name),
                || writer.named(&parent.dir, name, at, copy.stat.file_type, metadata),
            )?;
        }
        Ok(())
    }

    /// Copies a lower file to the path `to` in this layer.
    fn copy_up(&mut self, copy: &Copy, to: &[u8]) -> Result<(), Error> {
        let Copy { path, stat, metadata, .. } = copy;
        let found = self.lower.show(path).context("searching the lower layers for", path)?;
        let LowerEntry::Other { dir, .. } = found else {
            return Err(Error::hostile(to, Fault::LinkMissing(escape(path))));
        };
        let original = copy::Original { dir: &dir, name: path::split(path).1, stat, metadata };
        let (space, rights) = (self.space, self.rights);
        let mut lost = Vec::new();
        self.name(to, |dir, name| copy::up(&original, (dir, name), to, space, rights, &mut lost))?;
        self.lost.append(&mut lost);
        Ok(())
    }

    /// Creates a name in this layer, replacing a whiteout of this layer.
    fn name(&mut self, at: &[u8], make: impl FnOnce(&Dir, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let parent = self.tree.parent(at)?;
        let (_, name) = path::split(at);
        if parent.dir.try_stat(name).context("examining", at)?.is_some_and(|stat| stat.is_whiteout()) {
            parent.dir.unlink(name).context("replacing", at)?;
        }
        self.tree.watch(&parent, at)?;
        make(&parent.dir, name)?;
        self.tree.name_created(at)
    }

    /// Gives a directory the opaque attribute.
    fn mark(&mut self, path: &[u8]) -> Result<(), Error> {
        let dir = &self.tree.open(path)?.dir;
        let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
        let bytes = OPAQUE_XATTR.len() + 1;
        self.tree.attributes(bytes, path, || dir.stat_self(), || writer.opaque(dir, path))
    }

    fn whiteout(&mut self, at: &[u8]) -> Result<(), Error> {
        let (parent, name) = path::split(at);
        let parent = self.tree.open(parent)?;
        self.tree.watch(&parent, at)?;
        parent.dir.make_whiteout(name).context("creating the whiteout", at)?;
        self.tree.name_created(at)
    }

    /// Sets metadata of directories, innermost first. A name created in a directory changes its time, and a
    /// mode can block access.
    fn directories(&mut self, mut inherited: BTreeMap<Vec<u8>, Metadata>) -> Result<(), Error> {
        let directories = mem::take(&mut self.tree.directories);
        for (path, Directory { metadata, .. }) in directories.iter().rev() {
            let inherited = inherited.remove(path);
            let implied = Metadata::implied();
            let metadata = metadata.as_ref().or(inherited.as_ref()).unwrap_or(&implied);
            let dir = &self.tree.open(path)?.dir;
            let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
            self.tree.attributes(
                metadata.xattr_bytes(),
                path,
                || dir.stat_self(),
                || writer.directory(dir, path, metadata),
            )?;
        }
        self.tree.directories = directories;
        Ok(())
    }
}
