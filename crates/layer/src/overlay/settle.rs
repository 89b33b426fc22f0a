//! Settles the parts of a layer that depend on the layers below it.
//!
//! The rule is the OCI image spec; where it is silent, the result of applying the layers on top of one
//! another (docs/reference/runtimes.md lists where runtimes differ).
//!
//! 1. A hard link to a file of a lower layer copies that file up, with both names in this layer.
//! 2. An opaque directory gets its attribute. Without the privilege for that, and at the root of the layer,
//!    where overlayfs ignores the attribute, it gets one whiteout for each visible lower name instead.
//! 3. A directory that the tar implies gets mode, owner, attributes and time of the lower directory at its
//!    path. A lower file or symbolic link at that path is replaced, never followed.
//!
//! This code never changes an inode of a lower layer, or a non-directory of this layer, because those may be
//! shared.

use std::collections::{BTreeMap, HashSet};

use super::super::error::{Context, Error, Fault};
use super::super::path::{self, escape, shown};
use super::super::space::Space;
use super::super::stored::StoredDir;
use super::attributes::{Rights, Writer};
use super::lower::{self, Lower, LowerEntry};
use super::tree::Tree;
use super::{Applied, Directory, LowerLink, Metadata, copy};
use larder_model::seal::{Lost, Settled};
use larder_sys::{Dir, Stat};

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
    tree.directories = std::mem::take(&mut applied.directories);
    let mut settling = Settling { tree, lower, space, rights, lost: Vec::new(), settled: Settled::default() };
    settling.links(std::mem::take(&mut applied.lower_links))?;
    settling.opaque()?;
    settling.directories()?;
    let Settling { tree, mut lost, settled, .. } = settling;
    applied.directories = tree.finish()?;
    applied.lost.append(&mut lost);
    Ok(settled)
}

/// Returns the metadata that a directory inherits from below. `None` if the tar describes the directory, if
/// this layer hides the lower one, or if there is none.
///
/// # Errors
/// [`Error::Io`], if the lower layers cannot be read.
pub fn inherited(
    directory: &Directory,
    is_hidden: bool,
    path: &[u8],
    lower: &Lower,
) -> Result<Option<Metadata>, Error> {
    if directory.metadata.is_some() || directory.recreated || is_hidden {
        return Ok(None);
    }
    match lower.show(path).context("searching the lower layers for", path)? {
        LowerEntry::Directory(parts) => {
            Ok(Some(copy::metadata_of_dir(&parts[0]).context("reading the attributes of", path)?))
        }
        _ => Ok(None),
    }
}

/// Returns all directories for which [`is_hidden`] is true, in one pass.
pub fn hidden(directories: &BTreeMap<Vec<u8>, Directory>) -> HashSet<Vec<u8>> {
    let mut hidden = HashSet::new();
    for path in directories.keys().filter(|path| !path.is_empty()) {
        let above = path::split(path).0;
        if hidden.contains(above) || directories.get(above).is_some_and(Directory::hides_lower) {
            hidden.insert(path.clone());
        }
    }
    hidden
}

/// Reports whether a directory above `path` hides its lower entries.
pub fn is_hidden(directories: &BTreeMap<Vec<u8>, Directory>, path: &[u8]) -> bool {
    let mut above = path;
    while !above.is_empty() {
        above = path::split(above).0;
        if directories.get(above).is_some_and(Directory::hides_lower) {
            return true;
        }
    }
    false
}

struct Settling<'a> {
    tree: Tree<'a>,
    lower: &'a Lower,
    space: &'a dyn Space,
    rights: Rights,
    lost: Vec<Lost>,
    settled: Settled,
}

impl Settling<'_> {
    fn links(&mut self, links: BTreeMap<Vec<u8>, LowerLink>) -> Result<(), Error> {
        // Links to the same file share one inode.
        let mut copied: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (at, LowerLink { target, metadata }) in links {
            let missing = || Error::hostile(&at, Fault::LinkMissing(escape(&target)));
            let Some(lower::LinkTarget { path: resolved, dir, stat }) =
                self.lower.link_target(&target).context("searching the lower layers for", &target)?
            else {
                return Err(missing());
            };
            let first = match copied.get(&resolved) {
                Some(first) => first.clone(),
                None => {
                    let first = self.copy_up(&resolved, &at, (&dir, path::split(&resolved).1, &stat))?;
                    copied.insert(resolved, first.clone());
                    first
                }
            };
            if first != at {
                let source = self.tree.parent(&first)?;
                let first_name = path::split(&first).1;
                self.name(&at, |dir, name| source.dir.link(first_name, dir, name).context("linking", &at))?;
            }
            let parent = self.tree.parent(&at)?;
            let name = path::split(&at).1;
            let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
            self.tree.attributes(
                metadata.xattr_bytes(),
                &at,
                || parent.dir.stat(name),
                || writer.named(&parent.dir, name, &at, stat.file_type, &metadata),
            )?;
        }
        Ok(())
    }

    /// Copies a lower file to its own path in this layer, or directly to the link if that path is hidden or
    /// taken in this layer. Returns the path of the copy.
    fn copy_up(
        &mut self,
        resolved: &[u8],
        link: &[u8],
        from: (&StoredDir, &[u8], &Stat),
    ) -> Result<Vec<u8>, Error> {
        let to = if self.is_free(resolved)? { resolved } else { link };
        let (space, rights) = (self.space, self.rights);
        let mut lost = Vec::new();
        self.name(to, |dir, name| copy::up(from, (dir, name), to, space, rights, &mut lost))?;
        self.lost.append(&mut lost);
        self.settled.copied_up.push(shown(resolved));
        Ok(to.to_vec())
    }

    /// Reports whether a lower name is visible through this layer, so that a copy can have that name.
    fn is_free(&self, resolved: &[u8]) -> Result<bool, Error> {
        if is_hidden(&self.tree.directories, resolved) {
            return Ok(false);
        }
        let mut at = Vec::new();
        let mut dir = self.tree.root().try_clone().context("opening", b"")?;
        for component in path::components(resolved) {
            path::push(&mut at, component);
            match dir.try_stat(component).context("examining", &at)? {
                None => return Ok(true),
                Some(stat) if stat.is_dir() => {
                    dir = dir.open_dir(component).context("opening", &at)?;
                }
                Some(_) => return Ok(false),
            }
        }
        Ok(false)
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

    fn opaque(&mut self) -> Result<(), Error> {
        let opaque: Vec<Vec<u8>> = self
            .tree
            .directories
            .iter()
            .filter(|(_, directory)| directory.hides_lower())
            .map(|(path, _)| path.clone())
            .collect();
        for path in opaque {
            if self.rights.trusted && !path.is_empty() {
                let dir = &self.tree.open(&path)?.dir;
                let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
                let bytes = super::OPAQUE_XATTR.len() + 1;
                self.tree.attributes(bytes, &path, || dir.stat_self(), || writer.opaque(dir, &path))?;
                continue;
            }
            // A directory that is hidden from above has no visible lower names to hide.
            if !is_hidden(&self.tree.directories, &path) {
                self.mask(&path)?;
            }
            self.settled.opaque_as_whiteouts.push(shown(&path));
        }
        Ok(())
    }

    /// Hides all lower names of a directory by whiteouts, including those in subdirectories that both layers
    /// have.
    fn mask(&mut self, top: &[u8]) -> Result<(), Error> {
        // The queue contains paths instead of descriptors, because an image can have more directories than a
        // process can open.
        let mut pending = vec![top.to_vec()];
        while let Some(path) = pending.pop() {
            let LowerEntry::Directory(parts) = self.show(&path)? else { continue };
            let parent = self.tree.open(&path)?;
            for name in lower::names(&parts).context("listing the lower layers at", &path)? {
                let at = path::join(&path, &name);
                match parent.dir.try_stat(&name).context("examining", &at)? {
                    Some(stat) if stat.is_dir() => pending.push(at),
                    Some(_) => {}
                    None => {
                        self.tree.watch(&parent, &at)?;
                        parent.dir.make_whiteout(&name).context("creating the whiteout", &at)?;
                        self.tree.name_created(&at)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets metadata of directories, innermost first. A name created in a directory changes its time, and a
    /// mode can block access.
    fn directories(&mut self) -> Result<(), Error> {
        let hidden = hidden(&self.tree.directories);
        let paths: Vec<Vec<u8>> = self.tree.directories.keys().rev().cloned().collect();
        for path in paths {
            let directory = self.tree.directories.get(&path).cloned().unwrap_or_default();
            let from_below = inherited(&directory, hidden.contains(&path), &path, self.lower)?;
            if from_below.is_some() {
                self.settled.inherited.push(shown(&path));
            }
            let metadata = directory.metadata.or(from_below).unwrap_or_else(Metadata::implied);
            let dir = &self.tree.open(&path)?.dir;
            let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
            self.tree.attributes(
                metadata.xattr_bytes(),
                &path,
                || dir.stat_self(),
                || writer.directory(dir, &path, &metadata),
            )?;
        }
        self.settled.inherited.reverse();
        Ok(())
    }

    fn show(&self, path: &[u8]) -> Result<LowerEntry, Error> {
        self.lower.show(path).context("searching the lower layers for", path)
    }
}
