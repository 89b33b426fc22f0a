//! Resolves paths below a root that an attacker controls, one component at a time.
//!
//! Every tree of a layer is resolved here: the directories and EROFS images that the sinks write, the
//! merged view of lower layers, the tree that `verify` derives from the tar, and the view of `prefetch`.
//! Symbolic links are followed as if the tree were the root of the file system (path_resolution(7)), so no
//! path leads out of it. The result is that of openat2(2) with `RESOLVE_IN_ROOT`.

use std::borrow::Cow;

use super::fault::Fault;
use super::limits::{MAX_DEPTH, NAME_MAX};
use super::path::{self, escape};

#[cfg(test)]
pub(crate) mod tests;

/// Maximum number of symbolic links on one path, as in the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// Maximum number of entries that are looked up for one path. A path and 40 links of the length that the
/// kernel accepts have 84,000 components. Only a path that alternates between `..` and names can need more,
/// because the directory above must be found from the root.
const MAX_LOOKUPS: usize = 1 << 17;

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
    type Dir;
    /// The error of the storage.
    type Error;

    /// Returns the directory at `path`, which was resolved before. The root is the empty path.
    ///
    /// # Errors
    /// The error of the storage.
    fn directory(&mut self, path: &[u8]) -> Result<Self::Dir, Self::Error>;

    /// Returns the entry `name` of the directory `dir`; `at` is the path of the entry. A tree that creates
    /// missing directories does so here.
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
        /// Path of the directory, without symbolic links.
        path: Vec<u8>,
    },
    /// Part of the path is missing. The path is clean, with the links before the missing part resolved, so it
    /// can be looked up in other trees.
    Missing(Vec<u8>),
    /// An entry of the path is neither a directory nor a symbolic link.
    Other {
        /// The directory that contains the entry.
        parent: D,
        /// Path of the entry, without symbolic links.
        path: Vec<u8>,
        /// `true` if nothing follows the entry in the path. A slash at the end requires a directory.
        is_last: bool,
    },
}

/// A path that cannot be resolved.
#[derive(Debug)]
pub enum ResolveError<E> {
    /// The path exceeds a limit: the length of a name, the depth, the number of symbolic links or of
    /// lookups. Or
    /// `..` leads out of the tree behind a missing part.
    Path(Fault),
    /// The storage failed.
    Tree(E),
}

impl<E> From<E> for ResolveError<E> {
    fn from(error: E) -> Self {
        ResolveError::Tree(error)
    }
}

/// Resolves `wanted` from the root. Its components are separated by slashes.
///
/// # Errors
/// [`ResolveError::Path`] if a limit is exceeded, or the error of the tree.
pub fn resolve<T: Tree>(tree: &mut T, wanted: &[u8]) -> Result<Resolved<T::Dir>, ResolveError<T::Error>> {
    let mut rest = Rest { text: Cow::Borrowed(wanted), next: 0 };
    let (mut at, mut depth) = (Vec::new(), 0);
    // The directory `at` while it is open.
    let mut open = None;
    let (mut links, mut lookups) = (0, Lookups(0));
    while let Some(name) = rest.next() {
        if name == b".." {
            if depth > 0 {
                at.truncate(path::split(&at).0.len());
                (depth, open) = (depth - 1, None);
            }
            continue;
        }
        if name.len() > NAME_MAX {
            return Err(ResolveError::Path(Fault::NameTooLong));
        }
        if depth == MAX_DEPTH {
            return Err(ResolveError::Path(Fault::TooDeep));
        }
        let dir = match open.take() {
            Some(dir) => dir,
            None => {
                lookups.count(depth)?;
                tree.directory(&at)?
            }
        };
        lookups.count(1)?;
        let parent_len = at.len();
        path::push(&mut at, name);
        match tree.entry(&dir, name, &at)? {
            Entry::Directory(child) => (depth, open) = (depth + 1, Some(child)),
            Entry::Symlink(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(ResolveError::Path(Fault::Loop));
                }
                if target.starts_with(b"/") {
                    at.clear();
                    depth = 0;
                } else {
                    at.truncate(parent_len);
                    open = Some(dir);
                }
                rest.prepend(target);
            }
            Entry::Missing => {
                at.extend_from_slice(rest.remaining());
                return path::clean(&at).map(Resolved::Missing).map_err(ResolveError::Path);
            }
            Entry::Other => {
                let is_last = rest.remaining().is_empty();
                return Ok(Resolved::Other { parent: dir, path: at, is_last });
            }
        }
    }
    let dir = match open {
        Some(dir) => dir,
        None => tree.directory(&at)?,
    };
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
    match resolve(tree, wanted)? {
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
        /// Path of the directory, without symbolic links.
        path: Vec<u8>,
    },
    /// Part of the path is missing. The path is clean, with the links before the missing part resolved.
    Missing(Vec<u8>),
}

/// The part of a path that is not resolved yet.
struct Rest<'p> {
    text: Cow<'p, [u8]>,
    /// Offset of the end of the last component.
    next: usize,
}

impl Rest<'_> {
    /// Returns the next component that is not `.`; `None` at the end.
    fn next(&mut self) -> Option<&[u8]> {
        loop {
            let start = self.next + self.remaining().iter().position(|byte| *byte != b'/')?;
            let len = self.text[start..].iter().position(|byte| *byte == b'/');
            self.next = len.map_or(self.text.len(), |len| start + len);
            if self.text[start..self.next] != *b"." {
                return Some(&self.text[start..self.next]);
            }
        }
    }

    /// Returns the text after the last component, which is empty or starts with a slash.
    fn remaining(&self) -> &[u8] {
        &self.text[self.next..]
    }

    /// Inserts the target of a symbolic link in place of the last component.
    fn prepend(&mut self, target: Vec<u8>) {
        let mut text = target;
        text.extend_from_slice(self.remaining());
        *self = Rest { text: Cow::Owned(text), next: 0 };
    }
}

/// The number of entries that were looked up.
struct Lookups(usize);

impl Lookups {
    fn count<E>(&mut self, more: usize) -> Result<(), ResolveError<E>> {
        self.0 += more;
        if self.0 > MAX_LOOKUPS {
            return Err(ResolveError::Path(Fault::TooManyLookups { limit: MAX_LOOKUPS }));
        }
        Ok(())
    }
}
