//! Resolves paths below a root that an attacker controls, one component at a time.
//!
//! Every tree of a layer is resolved here: the directories and EROFS images that the sinks write, the merged view of lower
//! layers, the tree that `verify` derives from the tar, and the view of `prefetch`. Symbolic links are followed as if the
//! tree were the root of the file system (path_resolution(7)), so no path leads out of it.

use std::collections::VecDeque;

use super::fault::Fault;
use super::limits::{MAX_DEPTH, NAME_MAX};
use super::path::{self, escape};

/// Maximum number of symbolic links on one path, as in the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// The entry of a directory, as far as resolving is concerned.
#[derive(Debug)]
pub enum Entry<D> {
    /// A directory.
    Directory(D),
    /// A symbolic link, and its target.
    Symlink(Vec<u8>),
    /// No entry, or a hidden one.
    Missing,
    /// An entry of any other type.
    Other,
}

/// A tree in which paths are resolved.
pub trait Tree {
    /// An open directory.
    type Dir: Clone;
    /// The error of the storage.
    type Error;

    /// Returns the directory at `path`, which was resolved before. The root is the empty path.
    ///
    /// # Errors
    /// The error of the storage.
    fn directory(&mut self, path: &[u8]) -> Result<Self::Dir, Self::Error>;

    /// Returns the entry `name` of the directory `dir`; `at` is the path of the entry. A tree that creates missing
    /// directories does so here.
    ///
    /// # Errors
    /// The error of the storage.
    fn entry(&mut self, dir: &Self::Dir, name: &[u8], at: &[u8]) -> Result<Entry<Self::Dir>, Self::Error>;
}

/// The result of resolving a path.
#[derive(Debug)]
pub enum Resolved<D> {
    /// The whole path is a directory.
    Directory {
        /// The directory.
        dir: D,
        /// Its path without symbolic links.
        path: Vec<u8>,
    },
    /// Part of the path is missing. The path is clean, with the links before the missing part resolved.
    Missing(Vec<u8>),
    /// An entry of the path is neither a directory nor a symbolic link.
    Other {
        /// The directory that contains the entry.
        parent: D,
        /// Path of the entry, without symbolic links.
        path: Vec<u8>,
        /// `true` if the entry is the last component of the path.
        is_last: bool,
    },
}

/// A path that cannot be resolved.
#[derive(Debug)]
pub enum ResolveError<E> {
    /// The path breaks a limit: its length, its depth or its number of symbolic links.
    Path(Fault),
    /// The storage failed.
    Tree(E),
}

impl<E> From<E> for ResolveError<E> {
    fn from(error: E) -> Self {
        ResolveError::Tree(error)
    }
}

/// Resolves `wanted`, whose components are separated by slashes, from the directory `start`. An absolute path starts at the
/// root.
///
/// # Errors
/// [`ResolveError::Path`] if a limit is exceeded, or the error of the tree.
pub fn resolve<T: Tree>(
    tree: &mut T,
    start: &[u8],
    wanted: &[u8],
) -> Result<Resolved<T::Dir>, ResolveError<T::Error>> {
    let mut at = if wanted.starts_with(b"/") { Vec::new() } else { start.to_vec() };
    let mut dir = tree.directory(&at)?;
    let mut pending = VecDeque::new();
    prepend(&mut pending, wanted);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == b".." {
            at.truncate(path::split(&at).0.len());
            dir = tree.directory(&at)?;
            continue;
        }
        if name.len() > NAME_MAX {
            return Err(ResolveError::Path(Fault::NameTooLong));
        }
        let next = path::join(&at, &name);
        if path::components(&next).count() > MAX_DEPTH {
            return Err(ResolveError::Path(Fault::TooDeep));
        }
        match tree.entry(&dir, &name, &next)? {
            Entry::Directory(child) => (dir, at) = (child, next),
            Entry::Symlink(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ResolveError::Path(Fault::Loop));
                }
                if target.starts_with(b"/") {
                    at.clear();
                    dir = tree.directory(&at)?;
                }
                prepend(&mut pending, &target);
            }
            Entry::Missing => {
                let mut missing = next;
                pending.iter().for_each(|rest| path::push(&mut missing, rest));
                // The missing path may be looked up in other trees, so it must be clean.
                return path::clean(&missing).map(Resolved::Missing).map_err(ResolveError::Path);
            }
            Entry::Other => {
                return Ok(Resolved::Other { parent: dir, path: next, is_last: pending.is_empty() });
            }
        }
    }
    Ok(Resolved::Directory { dir, path: at })
}

/// Resolves `wanted` as [`resolve`] does. An entry that is no directory is an error.
///
/// # Errors
/// Those of [`resolve`], and [`Fault::ParentKind`].
pub fn resolve_directory<T: Tree>(
    tree: &mut T,
    wanted: &[u8],
) -> Result<Directory<T::Dir>, ResolveError<T::Error>> {
    match resolve(tree, b"", wanted)? {
        Resolved::Directory { dir, path } => Ok(Directory::Found { dir, path }),
        Resolved::Missing(path) => Ok(Directory::Missing(path)),
        Resolved::Other { path, .. } => Err(ResolveError::Path(Fault::ParentKind(escape(&path)))),
    }
}

/// The result of [`resolve_directory`].
#[derive(Debug)]
pub enum Directory<D> {
    /// The directory.
    Found {
        /// The directory.
        dir: D,
        /// Its path without symbolic links.
        path: Vec<u8>,
    },
    /// Part of the path is missing. The path is clean, with the links before the missing part resolved.
    Missing(Vec<u8>),
}

fn prepend(pending: &mut VecDeque<Vec<u8>>, path: &[u8]) {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.rev().for_each(|part| pending.push_front(part.to_vec()));
}
