//! Finds the parent of a member, and creates the parents that a tar implies, without ever leaving the layer.
//!
//! Symbolic links are followed as if the layer were the root of the file system (an honest layer can contain
//! `var/run -> /run`), by the rules of the overlay sink.

use super::{Layer, explain};
use crate::applied::Directory;
use crate::erofs::InodeId;
use crate::error::{Error, Fault};
use crate::metadata::Metadata;
use crate::path::{self, escape};
use crate::resolve::{self, Directory as Resolved, Entry, ResolveError, resolve_directory};
use larder_sys::FileType;

/// A directory and its path with symbolic links resolved.
#[derive(Debug)]
pub(super) struct LayerDir {
    pub(super) path: Vec<u8>,
    pub(super) id: InodeId,
}

/// The result of a path lookup in the layer.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The whole path exists.
    Found(LayerDir),
    /// Part of the path is missing. The value is the clean path, with existing links resolved.
    Missing(Vec<u8>),
}

/// The parent of the last member. The next member is usually in the same directory.
#[derive(Debug)]
pub(super) struct Cache {
    /// Path of the parent as in the member's.
    path: Vec<u8>,
    dir: LayerDir,
}

/// The root, which is at its path in every layer.
impl Default for Cache {
    fn default() -> Self {
        Cache { path: Vec::new(), dir: LayerDir { path: Vec::new(), id: InodeId::ROOT } }
    }
}

impl Cache {
    /// Clears the cache after a directory or a symbolic link was removed, because paths may now lead
    /// elsewhere.
    pub(super) fn forget(&mut self) {
        *self = Cache::default();
    }
}

impl Layer<'_> {
    /// Returns the parent of a member, and creates it if the tar only implies it.
    pub(super) fn parent(&mut self, member: &[u8]) -> Result<&LayerDir, Error> {
        let (parent, _) = path::split(member);
        if self.cache.path != parent {
            match self.walk(parent, member, true)? {
                Lookup::Found(dir) => self.cache = Cache { path: parent.to_vec(), dir },
                Lookup::Missing(at) => {
                    return Err(Error::hostile(member, Fault::ParentKind(escape(&at))));
                }
            }
        }
        Ok(&self.cache.dir)
    }

    /// Returns the directory at a path that exists and contains no symbolic link.
    pub(super) fn find(&self, path: &[u8]) -> Option<InodeId> {
        path::components(path)
            .try_fold(InodeId::ROOT, |directory, component| self.writer.lookup(directory, component))
    }

    /// Resolves `directory` by components, as if the layer were the root of the file system.
    pub(super) fn walk(&mut self, directory: &[u8], member: &[u8], make: bool) -> Result<Lookup, Error> {
        match resolve_directory(&mut Walk { layer: self, make }, directory) {
            Ok(Resolved::Found { dir: id, path }) => Ok(Lookup::Found(LayerDir { path, id })),
            Ok(Resolved::Missing(path)) => Ok(Lookup::Missing(path)),
            Err(ResolveError::Path(fault)) => Err(Error::hostile(member, fault)),
            Err(ResolveError::Tree(error)) => Err(error),
        }
    }

    #[cfg(test)]
    pub(super) fn answer(&mut self, path: &[u8], make: bool) -> resolve::tests::Answer {
        resolve::tests::answer(&mut Walk { layer: self, make }, path)
    }

    /// Creates a directory that the tar does not contain, replacing a whiteout of this layer.
    fn imply(&mut self, parent: InodeId, at: &[u8], whiteout: bool) -> Result<InodeId, Error> {
        let (_, name) = path::split(at);
        self.count_memory(at, 0)?;
        if whiteout {
            self.writer.remove(parent, name).map_err(|e| explain(at, e))?;
        }
        let made = self.writer.directory(parent, name, &Metadata::implied());
        let id = made.map_err(|e| explain(at, e))?;
        self.directories.insert(at.to_vec(), Directory { recreated: whiteout, ..Directory::default() });
        Ok(id)
    }
}

/// A layer whose paths are resolved. With `make`, missing directories are created.
struct Walk<'t, 'a> {
    layer: &'t mut Layer<'a>,
    make: bool,
}

impl resolve::Tree for Walk<'_, '_> {
    type Dir = InodeId;
    type Error = Error;

    fn directory(&mut self, path: &[u8]) -> Result<InodeId, Error> {
        // The path was resolved before, so it exists.
        Ok(self.layer.find(path).unwrap_or(InodeId::ROOT))
    }

    fn entry(&mut self, dir: &InodeId, name: &[u8], at: &[u8]) -> Result<Entry<InodeId>, Error> {
        let writer = &mut self.layer.writer;
        let found = writer.lookup(*dir, name);
        let whiteout = found.is_some_and(|id| writer.is_whiteout(id));
        Ok(match found.filter(|_| !whiteout) {
            // A file of a lower layer is not a directory either.
            None if self.layer.lower_links.contains_key(at) => Entry::Other,
            None if self.make => Entry::Directory(self.layer.imply(*dir, at, whiteout)?),
            None => Entry::Missing,
            Some(id) => match writer.file_type(id) {
                FileType::Directory => Entry::Directory(id),
                FileType::Symlink => Entry::Symlink(writer.target(id).map_err(|e| explain(at, e))?),
                _ => Entry::Other,
            },
        })
    }
}
