//! Plans how a layer is settled: everything in it that depends on the layers below.
//!
//! The rule is the OCI image spec; where it is silent, the result of applying the layers on top of one
//! another (docs/reference/runtimes.md lists where runtimes differ).
//!
//! 1. A hard link to a file of a lower layer copies that file up, with both names in this layer.
//! 2. An opaque directory hides lower names by its attribute. Without the privilege for that, and at the root
//!    of the layer, where overlayfs ignores the attribute, it gets one whiteout for each visible lower name
//!    instead.
//! 3. A directory that the tar implies gets mode, owner, attributes and time of the lower directory at its
//!    path. A lower file or symbolic link at that path is replaced, never followed.
//!
//! A [`Plan`] names the changes and makes none. The overlay sink and the EROFS sink execute it, and `verify`
//! compares its result with a volume. A plan holds no descriptor, because a layer can have more links than a
//! process can open files.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::applied::{Directory, LowerLink};
use super::error::{Context as _, Error, Fault};
use super::lower::{self, Lower, LowerEntry};
use super::metadata::Metadata;
use super::path::{self, escape, shown};
use larder_model::seal::Settled;
use larder_sys::Stat;

#[cfg(test)]
mod tests;

/// The tree of a layer, as far as settling reads it.
pub trait OwnTree {
    /// `true` if an opaque directory that has its attribute also gets whiteouts when a directory above it is
    /// masked. They change nothing, but existing volumes have them.
    const MASKS_OPAQUE: bool;

    /// Reports whether the layer has an entry of any type at `path`. The parent is a directory of the layer.
    ///
    /// # Errors
    /// [`Error::Io`], if the tree cannot be read.
    fn contains(&mut self, path: &[u8]) -> Result<bool, Error>;

    /// Reports whether the directory at `path`, which is not the root, can hide lower names by its attribute.
    fn has_attribute(&self, path: &[u8]) -> bool;
}

/// The changes that settle a layer. All paths are clean and contain no symbolic link.
#[derive(Debug, Default)]
pub struct Plan {
    /// Files of lower layers, each once, in the order of the first link to each.
    pub copies: Vec<Copy>,
    /// Names of the copies, in order. The parents of these names are directories of the layer.
    pub links: Vec<Link>,
    /// Directories that hide lower names by their attribute.
    pub attributes: Vec<Vec<u8>>,
    /// Directories that hide lower names by whiteouts.
    pub masked: Vec<Vec<u8>>,
    /// Paths of these whiteouts, grouped by directory.
    pub whiteouts: Vec<Vec<u8>>,
    /// Metadata from lower layers, by directory. Contains the directories that only a copy requires.
    pub inherited: BTreeMap<Vec<u8>, Metadata>,
}

/// A file of a lower layer to copy.
#[derive(Debug)]
pub struct Copy {
    /// Path of the file.
    pub path: Vec<u8>,
    /// `true` if the copy also gets the path of the original, which is visible through this layer. Otherwise
    /// it only has the names of links.
    pub keeps_path: bool,
    /// File attributes of the original.
    pub stat: Stat,
    /// Metadata of the original.
    pub metadata: Metadata,
}

/// A name of a copy.
#[derive(Debug)]
pub struct Link {
    /// Path of the link.
    pub path: Vec<u8>,
    /// Index of the copy.
    pub copy: usize,
    /// Metadata of the link member, which changes the copy.
    pub metadata: Metadata,
}

impl Plan {
    /// Returns the changes as `cache.json` lists them.
    pub fn settled(&self) -> Settled {
        Settled {
            copied_up: self.copies.iter().map(|copy| shown(&copy.path)).collect(),
            opaque_as_whiteouts: self.masked.iter().map(|path| shown(path)).collect(),
            inherited: self.inherited.keys().map(|path| shown(path)).collect(),
        }
    }
}

/// Plans how a layer with these directories, and these links to lower files, is settled on top of `lower`.
///
/// # Errors
/// [`Error::Hostile`] for a link without a target, or [`Error::Io`].
pub fn plan(
    directories: &BTreeMap<Vec<u8>, Directory>,
    links: BTreeMap<Vec<u8>, LowerLink>,
    lower: &Lower,
    own: &mut impl OwnTree,
) -> Result<Plan, Error> {
    let mut planner = Planner { directories, links: &links, lower, own, plan: Plan::default() };
    let copies = planner.copies()?;
    planner.opaque()?;
    planner.inherited()?;
    let mut plan = planner.plan;
    let link = |((path, LowerLink { metadata, .. }), copy)| Link { path, copy, metadata };
    plan.links = links.into_iter().zip(copies).map(link).collect();
    Ok(plan)
}

struct Planner<'a, T> {
    directories: &'a BTreeMap<Vec<u8>, Directory>,
    links: &'a BTreeMap<Vec<u8>, LowerLink>,
    lower: &'a Lower,
    own: &'a mut T,
    plan: Plan,
}

impl<T: OwnTree> Planner<'_, T> {
    /// Plans the copies, and returns the index of the copy of each link.
    fn copies(&mut self) -> Result<Vec<usize>, Error> {
        let mut known: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut indices = Vec::with_capacity(self.links.len());
        for (at, LowerLink { target, .. }) in self.links {
            let found = self.lower.link_target(target).context("searching the lower layers for", target)?;
            let found = found.ok_or_else(|| Error::hostile(at, Fault::LinkMissing(escape(target))))?;
            if let Some(index) = known.get(&found.path) {
                indices.push(*index);
                continue;
            }
            let copy = self.copy(&found)?;
            let index = self.plan.copies.len();
            self.plan.copies.push(copy);
            known.insert(found.path, index);
            indices.push(index);
        }
        Ok(indices)
    }

    fn copy(&mut self, found: &lower::LinkTarget) -> Result<Copy, Error> {
        let lower::LinkTarget { path, dir, stat } = found;
        let metadata = dir.metadata(path::split(path).1, stat);
        let metadata = metadata.context("reading the attributes of", path)?;
        let keeps_path = self.is_free(path)?;
        Ok(Copy { path: path.clone(), keeps_path, stat: *stat, metadata })
    }

    /// Reports whether a lower name is visible through this layer, so that a copy can have that name.
    fn is_free(&mut self, resolved: &[u8]) -> Result<bool, Error> {
        if is_hidden(self.directories, resolved) {
            return Ok(false);
        }
        let mut at = Vec::with_capacity(resolved.len());
        for component in path::components(resolved) {
            path::push(&mut at, component);
            if self.links.contains_key(&at) {
                return Ok(false);
            }
            if !self.directories.contains_key(&at) {
                return Ok(!self.own.contains(&at)?);
            }
        }
        // A directory of this name belongs to the layer.
        Ok(false)
    }

    fn opaque(&mut self) -> Result<(), Error> {
        let directories = self.directories;
        for (path, _) in directories.iter().filter(|(_, directory)| directory.hides_lower()) {
            if !path.is_empty() && self.own.has_attribute(path) {
                self.plan.attributes.push(path.clone());
                continue;
            }
            // A directory that is hidden from above has no visible lower names to hide.
            if !is_hidden(directories, path) {
                self.mask(path)?;
            }
            self.plan.masked.push(path.clone());
        }
        Ok(())
    }

    /// Hides all lower names of a directory by whiteouts, including those in subdirectories that both layers
    /// have.
    fn mask(&mut self, top: &[u8]) -> Result<(), Error> {
        let mut pending = vec![top.to_vec()];
        while let Some(path) = pending.pop() {
            let LowerEntry::Directory(parts) = show(self.lower, &path)? else { continue };
            for name in lower::names(&parts).context("listing the lower layers at", &path)? {
                let at = path::join(&path, &name);
                match self.directories.get(&at) {
                    Some(directory) if directory.hides_lower() && !self.is_masked(&at) => {}
                    Some(_) => pending.push(at),
                    None if self.links.contains_key(&at) || self.own.contains(&at)? => {}
                    None => self.plan.whiteouts.push(at),
                }
            }
        }
        Ok(())
    }

    /// Reports whether the whiteouts of a directory above include names in this opaque directory.
    fn is_masked(&self, opaque: &[u8]) -> bool {
        T::MASKS_OPAQUE || !self.own.has_attribute(opaque)
    }

    /// Plans the metadata of directories that the tar does not describe.
    fn inherited(&mut self) -> Result<(), Error> {
        let hidden = hidden(self.directories);
        // Nothing is below a directory that the lower layers do not have.
        let mut absent: HashSet<&[u8]> = HashSet::new();
        for (path, directory) in self.directories {
            let is_implied = directory.metadata.is_none() && !directory.recreated;
            if !is_implied || hidden.contains(path.as_slice()) {
                continue;
            }
            let is_absent = !path.is_empty() && absent.contains(path::split(path).0);
            if is_absent || !self.inherit(path)? {
                absent.insert(path);
            }
        }
        let copies = std::mem::take(&mut self.plan.copies);
        for copy in copies.iter().filter(|copy| copy.keeps_path) {
            let mut above = path::split(&copy.path).0;
            while !above.is_empty()
                && !self.directories.contains_key(above)
                && !self.plan.inherited.contains_key(above)
            {
                self.inherit(above)?;
                above = path::split(above).0;
            }
        }
        self.plan.copies = copies;
        Ok(())
    }

    /// Takes the metadata of the lower directory at `path`. Returns `false` if there is none.
    fn inherit(&mut self, path: &[u8]) -> Result<bool, Error> {
        let found = self.lower.top(path).context("searching the lower layers for", path)?;
        let Some(dir) = found else { return Ok(false) };
        let metadata = dir.metadata_self().context("reading the attributes of", path)?;
        self.plan.inherited.insert(path.to_vec(), metadata);
        Ok(true)
    }
}

fn show(lower: &Lower, path: &[u8]) -> Result<LowerEntry, Error> {
    lower.show(path).context("searching the lower layers for", path)
}

/// Returns all directories for which [`is_hidden`] is true, in one pass.
fn hidden(directories: &BTreeMap<Vec<u8>, Directory>) -> HashSet<&[u8]> {
    let mut hidden = HashSet::new();
    for path in directories.keys().filter(|path| !path.is_empty()) {
        let above = path::split(path).0;
        if hidden.contains(above) || directories.get(above).is_some_and(Directory::hides_lower) {
            hidden.insert(path.as_slice());
        }
    }
    hidden
}

/// Reports whether a directory above `path` hides its lower entries.
fn is_hidden(directories: &BTreeMap<Vec<u8>, Directory>, path: &[u8]) -> bool {
    let mut above = path;
    while !above.is_empty() {
        above = path::split(above).0;
        if directories.get(above).is_some_and(Directory::hides_lower) {
            return true;
        }
    }
    false
}
