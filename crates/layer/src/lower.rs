//! The merged view of the lower layers, with the rules of overlayfs. The topmost name wins. Directories of
//! the same name are merged down to the first opaque one. A whiteout or a file hides everything below it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Deref;
use std::rc::Rc;

use super::metadata::OPAQUE_XATTR;
use super::path;
use super::resolve::{self, Entry, ResolveError, Resolved};
use super::stored::StoredDir;
use larder_sys::{FileType, Stat};

/// The layers below one layer.
#[derive(Debug)]
pub struct Lower {
    /// Trees of the layers, topmost first.
    layers: Vec<Rc<Part>>,
}

/// The directory that one layer contributes to a merged directory.
#[derive(Debug)]
pub struct Part {
    /// Index of the layer, counted from the topmost.
    pub layer: usize,
    dir: StoredDir,
}

impl Deref for Part {
    type Target = StoredDir;

    fn deref(&self) -> &StoredDir {
        &self.dir
    }
}

/// The entry at a path in the merged view.
#[derive(Debug)]
pub enum LowerEntry {
    /// No entry, or a hidden one.
    Nothing,
    /// A merged directory: the parts of the layers, topmost first. Its metadata is that of the first part.
    Directory(Vec<Rc<Part>>),
    /// An entry of any other type.
    Other {
        /// Directory of the layer that contains the entry.
        dir: Rc<Part>,
        /// File attributes of the entry.
        stat: Stat,
    },
}

/// A file of the lower layers that is the target of a hard link.
#[derive(Debug)]
pub struct LinkTarget {
    /// Path of the file, with symbolic links resolved.
    pub path: Vec<u8>,
    /// Directory of the layer that contains the file.
    pub dir: Rc<Part>,
    /// File attributes of the file.
    pub stat: Stat,
}

impl Lower {
    /// Creates the view from the trees of the layers, topmost first.
    pub fn new(layers: impl IntoIterator<Item = StoredDir>) -> Self {
        let parts = layers.into_iter().enumerate().map(|(layer, dir)| Rc::new(Part { layer, dir }));
        Lower { layers: parts.collect() }
    }

    /// Returns the parts of the merged root, topmost first.
    pub fn root(&self) -> &[Rc<Part>] {
        &self.layers
    }

    /// Returns the entry at a clean path. Does not follow symbolic links on the way.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn show(&self, path: &[u8]) -> io::Result<LowerEntry> {
        let mut shown = LowerEntry::Directory(self.layers.clone());
        if self.layers.is_empty() {
            return Ok(LowerEntry::Nothing);
        }
        for component in path::components(path) {
            shown = match shown {
                LowerEntry::Directory(parts) => child(&parts, component)?,
                _ => return Ok(LowerEntry::Nothing),
            };
        }
        Ok(shown)
    }

    /// Returns the part of the topmost layer in the merged directory at a clean path, or `None` if the entry
    /// is no directory. This is the first part that [`show`](Self::show) returns, but the layers below it are
    /// not read.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn top(&self, path: &[u8]) -> io::Result<Option<Rc<Part>>> {
        for layer in &self.layers {
            match top_of(layer, path)? {
                Top::Found(part) => return Ok(Some(part)),
                Top::Hidden => return Ok(None),
                Top::Absent => {}
            }
        }
        Ok(None)
    }

    /// Resolves the target of a hard link in the layer above. Follows symbolic links in parent positions
    /// within the view, but not the last component. Returns `None` if there is no such file.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn link_target(&self, target: &[u8]) -> io::Result<Option<LinkTarget>> {
        let (parent, name) = path::split(target);
        let at = match resolve::resolve(&mut { self }, parent) {
            Ok(Resolved::Directory { path, .. }) => path::join(&path, name),
            Ok(Resolved::Missing(_) | Resolved::Other { .. }) | Err(ResolveError::Path(_)) => {
                return Ok(None);
            }
            Err(ResolveError::Tree(error)) => return Err(error),
        };
        Ok(match self.show(&at)? {
            LowerEntry::Other { dir, stat } => Some(LinkTarget { path: at, dir, stat }),
            _ => None,
        })
    }
}

impl resolve::Tree for &Lower {
    type Dir = Vec<Rc<Part>>;
    type Error = io::Error;

    fn directory(&mut self, path: &[u8]) -> io::Result<Self::Dir> {
        Ok(match self.show(path)? {
            LowerEntry::Directory(parts) => parts,
            _ => Vec::new(),
        })
    }

    fn entry(&mut self, dir: &Self::Dir, name: &[u8], _at: &[u8]) -> io::Result<Entry<Self::Dir>> {
        entry(child(dir, name)?, name)
    }
}

/// The directory at a path in one layer.
enum Top {
    Found(Rc<Part>),
    /// This layer hides the path in the layers below.
    Hidden,
    /// The layers below decide.
    Absent,
}

fn top_of(root: &Rc<Part>, path: &[u8]) -> io::Result<Top> {
    let mut at = Rc::clone(root);
    let mut above: Vec<Rc<Part>> = Vec::new();
    for name in path::components(path) {
        match at.try_stat(name)? {
            Some(stat) if stat.is_dir() => {}
            Some(_) => return Ok(Top::Hidden),
            None => {
                for part in &above {
                    if is_opaque(part)? {
                        return Ok(Top::Hidden);
                    }
                }
                return Ok(Top::Absent);
            }
        }
        let dir = at.open_dir(name)?;
        at = Rc::new(Part { layer: root.layer, dir });
        above.push(Rc::clone(&at));
    }
    Ok(Top::Found(at))
}

/// Reports whether a directory hides those of the same name in the layers below.
fn is_opaque(dir: &StoredDir) -> io::Result<bool> {
    Ok(dir.xattr_self(OPAQUE_XATTR)?.is_some_and(|value| value == b"y"))
}

/// Converts an entry of the merged view for [`resolve`](resolve::resolve).
///
/// # Errors
/// The error of the file system or the image.
pub fn entry(found: LowerEntry, name: &[u8]) -> io::Result<Entry<Vec<Rc<Part>>>> {
    Ok(match found {
        LowerEntry::Nothing => Entry::Missing,
        LowerEntry::Directory(parts) => Entry::Directory(parts),
        LowerEntry::Other { dir, stat } if stat.file_type == FileType::Symlink => {
            Entry::Symlink(dir.read_link(name)?)
        }
        LowerEntry::Other { .. } => Entry::Other,
    })
}

/// Returns the visible names in a merged directory.
///
/// # Errors
/// The error of the file system or the image.
pub fn names(parts: &[Rc<Part>]) -> io::Result<BTreeSet<Vec<u8>>> {
    let mut shown = BTreeSet::new();
    let mut hidden = BTreeSet::new();
    for part in parts {
        for name in part.names()? {
            if shown.contains(&name) || hidden.contains(&name) {
                continue;
            }
            if part.stat(&name)?.is_whiteout() {
                hidden.insert(name);
            } else {
                shown.insert(name);
            }
        }
    }
    Ok(shown)
}

/// Returns the entry `name` of a merged directory.
///
/// # Errors
/// The error of the file system or the image.
pub fn child(parts: &[Rc<Part>], name: &[u8]) -> io::Result<LowerEntry> {
    let mut found = Vec::new();
    for part in parts {
        let Some(stat) = part.try_stat(name)? else {
            continue;
        };
        if !stat.is_dir() {
            let hides = stat.is_whiteout() || !found.is_empty();
            return Ok(match (hides, found.is_empty()) {
                (true, true) => LowerEntry::Nothing,
                (true, false) => LowerEntry::Directory(found),
                (false, _) => LowerEntry::Other { dir: Rc::clone(part), stat },
            });
        }
        let dir = part.open_dir(name)?;
        let opaque = is_opaque(&dir)?;
        found.push(Rc::new(Part { layer: part.layer, dir }));
        if opaque {
            break;
        }
    }
    Ok(if found.is_empty() { LowerEntry::Nothing } else { LowerEntry::Directory(found) })
}
