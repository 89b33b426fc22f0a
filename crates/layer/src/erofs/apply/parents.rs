//! Finds the parent of a member, and creates the parents that a tar implies, without ever leaving the layer.
//!
//! Symbolic links are followed as if the layer were the root of the file system (an honest layer can contain
//! `var/run -> /run`), by the rules of the overlay sink.

use std::collections::VecDeque;

use super::{Layer, explain};
use crate::erofs::inode::InodeId;
use crate::error::{Error, Fault};
use crate::metadata::Metadata;
use crate::overlay::Directory;
use crate::path::{self, escape};
use larder_sys::FileType;

/// Maximum number of symbolic links on one path, as in the kernel (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// A directory and its path with symbolic links resolved.
#[derive(Clone, Debug)]
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
#[derive(Debug, Default)]
pub(super) struct Cache(Option<(Vec<u8>, LayerDir)>);

impl Cache {
    /// Clears the cache after a directory or a symbolic link was removed, because paths may now lead
    /// elsewhere.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

impl Layer<'_> {
    /// Returns the parent of a member, and creates it if the tar only implies it.
    pub(super) fn parent(&mut self, member: &[u8]) -> Result<LayerDir, Error> {
        let (parent, _) = path::split(member);
        if let Some((path, dir)) = &self.cache.0
            && path == parent
        {
            return Ok(dir.clone());
        }
        match self.walk(parent, member, true)? {
            Lookup::Found(dir) => {
                self.cache.0 = Some((parent.to_vec(), dir.clone()));
                Ok(dir)
            }
            Lookup::Missing(at) => Err(Error::hostile(member, Fault::ParentKind(escape(&at)))),
        }
    }

    /// Returns the directory at a path that exists and contains no symbolic link.
    pub(super) fn find(&self, path: &[u8]) -> Option<InodeId> {
        path::components(path)
            .try_fold(InodeId::ROOT, |directory, component| self.writer.lookup(directory, component))
    }

    /// Walks to `directory` by components, as if the layer were the root of the file system.
    pub(super) fn walk(&mut self, directory: &[u8], member: &[u8], make: bool) -> Result<Lookup, Error> {
        let mut here = LayerDir { path: Vec::new(), id: InodeId::ROOT };
        let mut pending: VecDeque<Vec<u8>> = path::components(directory).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(component) = pending.pop_front() {
            if component.len() > 255 {
                return Err(Error::hostile(member, Fault::NameTooLong));
            }
            if component == b".." {
                here.path.truncate(path::split(&here.path).0.len());
                here.id = self.writer.parent(here.id).unwrap_or(InodeId::ROOT);
                continue;
            }
            let at = path::join(&here.path, &component);
            let found = self.writer.lookup(here.id, &component);
            let whiteout = found.is_some_and(|id| self.writer.is_whiteout(id));
            match found.filter(|_| !whiteout) {
                None if make => here = self.imply(&here, &component, at, whiteout)?,
                None => {
                    let mut missing = at;
                    pending.iter().for_each(|rest| path::push(&mut missing, rest));
                    // The missing path is looked up in the layers below, so it must be clean.
                    return Ok(Lookup::Missing(
                        path::clean(&missing).map_err(|f| Error::hostile(member, f))?,
                    ));
                }
                Some(id) => match self.writer.file_type(id) {
                    FileType::Directory => here = LayerDir { path: at, id },
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Error::hostile(member, Fault::Loop));
                        }
                        let target = self.writer.target(id).map_err(|e| explain(&at, e))?;
                        if target.starts_with(b"/") {
                            here = LayerDir { path: Vec::new(), id: InodeId::ROOT };
                        }
                        let parts =
                            target.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
                        parts.rev().for_each(|part| pending.push_front(part.to_vec()));
                    }
                    _ => return Err(Error::hostile(member, Fault::ParentKind(escape(&at)))),
                },
            }
        }
        Ok(Lookup::Found(here))
    }

    /// Creates a directory that the tar does not contain, replacing a whiteout of this layer.
    fn imply(
        &mut self,
        parent: &LayerDir,
        name: &[u8],
        at: Vec<u8>,
        whiteout: bool,
    ) -> Result<LayerDir, Error> {
        // Symbolic links can lead deeper than the path of a member shows.
        if path::components(&at).count() > path::MAX_DEPTH {
            return Err(Error::hostile(&at, Fault::TooDeep));
        }
        self.count_memory(&at, 0)?;
        if whiteout {
            self.writer.remove(parent.id, name).map_err(|e| explain(&at, e))?;
        }
        let made = self.writer.directory(parent.id, name, &Metadata::implied());
        let id = made.map_err(|e| explain(&at, e))?;
        self.directories.insert(at.clone(), Directory { recreated: whiteout, ..Directory::default() });
        Ok(LayerDir { path: at, id })
    }
}
