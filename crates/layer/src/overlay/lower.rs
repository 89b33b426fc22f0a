//! The merged view of the lower layers, with the rules of overlayfs. The topmost name wins. Directories of
//! the same name are merged down to the first opaque one. A whiteout or a file hides everything below it.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::Deref;
use std::rc::Rc;

use super::super::path;
use super::super::stored::StoredDir;
use super::OPAQUE_XATTR;
use larder_sys::{FileType, Stat};

/// Maximum number of symbolic links on one path, as in the kernel.
const MAX_LINKS: u32 = 40;

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

    /// Resolves the target of a hard link in the layer above. Follows symbolic links in parent positions
    /// within the view, but not the last component. Returns `None` if there is no such file.
    ///
    /// # Errors
    /// The error of the file system or the image.
    pub fn link_target(&self, target: &[u8]) -> io::Result<Option<LinkTarget>> {
        let (parent, name) = path::split(target);
        let mut here: Vec<u8> = Vec::new();
        let mut pending: VecDeque<Vec<u8>> = path::components(parent).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(component) = pending.pop_front() {
            if component == b".." {
                here.truncate(path::split(&here).0.len());
                continue;
            }
            let at = path::join(&here, &component);
            match self.show(&at)? {
                LowerEntry::Directory(_) => here = at,
                LowerEntry::Other { dir, stat }
                    if stat.file_type == FileType::Symlink && links < MAX_LINKS =>
                {
                    links += 1;
                    let text = dir.read_link(&component)?;
                    if text.starts_with(b"/") {
                        here.clear();
                    }
                    let parts = text.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
                    parts.rev().for_each(|part| pending.push_front(part.to_vec()));
                }
                _ => return Ok(None),
            }
        }
        let at = path::join(&here, name);
        Ok(match self.show(&at)? {
            LowerEntry::Other { dir, stat } => Some(LinkTarget { path: at, dir, stat }),
            _ => None,
        })
    }
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
        let opaque = dir.xattr_self(OPAQUE_XATTR)?.is_some_and(|value| value == b"y");
        found.push(Rc::new(Part { layer: part.layer, dir }));
        if opaque {
            break;
        }
    }
    Ok(if found.is_empty() { LowerEntry::Nothing } else { LowerEntry::Directory(found) })
}
