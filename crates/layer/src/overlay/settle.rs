//! What of a layer depends on the layers below it.
//!
//! The rule: what the OCI image spec says, else what applying the layers one upon the other gives (docs/reference/runtimes.md
//! lists where runtimes disagree).
//!
//! 1. A hard link to a file of a lower layer copies that file up, with both names in this layer.
//! 2. An opaque directory carries its attribute; without the privilege for that, and at the root of the layer, where
//!    overlayfs does not look at it, it has one whiteout for each name that shows through instead.
//! 3. A directory that the tar implies takes mode, owner, attributes and time of the lower directory that it is laid over.
//!    A lower file or symbolic link in its place is replaced, never followed.
//!
//! Nothing here touches an inode of a lower layer, or one that is no directory in this layer: those may be shared.

use std::collections::{BTreeMap, HashSet};

use super::super::error::{Context, Error, Fault};
use super::super::path::{self, escape, shown};
use super::super::space::Space;
use super::super::stored::StoredDir;
use super::attributes::{Rights, Writer};
use super::lower::{self, Lower, Shown};
use super::tree::Tree;
use super::{Applied, Directory, LowerLink, Metadata, copy};
use larder_model::seal::{Lost, Settled};
use larder_sys::{Dir, Stat};

/// Settles the tree in `diff` on top of `lower`, and says what that changed.
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

/// What a directory of a layer takes from below: nothing where the tar describes it, where the layer hides the lower one,
/// or where there is none.
pub fn inherited(
    directory: &Directory,
    is_hidden: bool,
    path: &[u8],
    lower: &Lower,
) -> Result<Option<Metadata>, Error> {
    if directory.metadata.is_some() || directory.recreated || is_hidden {
        return Ok(None);
    }
    match lower.show(path).context("looking in the layers below for", path)? {
        Shown::Directory(parts) => {
            Ok(Some(copy::metadata_of_dir(&parts[0]).context("reading the attributes of", path)?))
        }
        _ => Ok(None),
    }
}

/// The directories above which one lets nothing of the layers below through: [`is_hidden`] for all of them in one pass.
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

/// Whether a directory above `path` lets nothing of the layers below through.
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
        // Links to one file share one inode.
        let mut copied: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for (at, LowerLink { target, metadata }) in links {
            let missing = || Error::hostile(&at, Fault::LinkMissing(escape(&target)));
            let Some(lower::LinkTarget { path: resolved, dir, stat }) =
                self.lower.link_target(&target).context("looking in the layers below for", &target)?
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
            let place = self.tree.parent(&at)?;
            let name = path::split(&at).1;
            let mut writer = Writer { rights: self.rights, lost: &mut self.lost };
            self.tree.attributes(
                metadata.xattr_bytes(),
                &at,
                || place.dir.stat(name),
                || writer.named(&place.dir, name, &at, stat.file_type, &metadata),
            )?;
        }
        Ok(())
    }

    /// Copies a lower file to its own name in this layer, or straight to the link where this layer has hidden that name or
    /// has something else there. Returns where it went.
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

    /// Whether a lower name still shows through this layer, so that a copy may stand under it.
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

    /// Makes a name in this layer, over a whiteout of its own where there is one.
    fn name(&mut self, at: &[u8], make: impl FnOnce(&Dir, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let place = self.tree.parent(at)?;
        let (_, name) = path::split(at);
        if place.dir.try_stat(name).context("examining", at)?.is_some_and(|stat| stat.is_whiteout()) {
            place.dir.unlink(name).context("replacing", at)?;
        }
        self.tree.watch(&place, at)?;
        make(&place.dir, name)?;
        self.tree.named(at)
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
            // What is hidden from above shows nothing that would have to be hidden again.
            if !is_hidden(&self.tree.directories, &path) {
                self.mask(&path)?;
            }
            self.settled.opaque_as_whiteouts.push(shown(&path));
        }
        Ok(())
    }

    /// Hides every lower name of a directory by whiteouts, also below the directories that both have.
    fn mask(&mut self, top: &[u8]) -> Result<(), Error> {
        // Paths rather than descriptors wait: an image may have more directories than a process may have open.
        let mut pending = vec![top.to_vec()];
        while let Some(path) = pending.pop() {
            let Shown::Directory(parts) = self.show(&path)? else { continue };
            let place = self.tree.open(&path)?;
            for name in lower::names(&parts).context("listing the layers below at", &path)? {
                let at = path::join(&path, &name);
                match place.dir.try_stat(&name).context("examining", &at)? {
                    Some(stat) if stat.is_dir() => pending.push(at),
                    Some(_) => {}
                    None => {
                        self.tree.watch(&place, &at)?;
                        place.dir.make_whiteout(&name).context("creating the whiteout", &at)?;
                        self.tree.named(&at)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Metadata of directories, innermost first: a name made in a directory changes its time, and a mode may close it.
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

    fn show(&self, path: &[u8]) -> Result<Shown, Error> {
        self.lower.show(path).context("looking in the layers below for", path)
    }
}
