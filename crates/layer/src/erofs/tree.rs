//! Builds an image from a directory tree.
//!
//! Directories are walked depth first, with names in byte order, so the same tree gives the same image. The
//! contents of a directory are adjacent in the image. Inodes with several names in the tree are one inode in
//! the image, whose link count is the number of names found. The walk crosses mount points.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;

use super::super::error::{io_class, named};
use super::super::metadata::Metadata;
use super::super::path;
use super::super::tar::Region;
use super::error::Error;
use super::inode::InodeId;
use super::writer::{Special, Writer};
use larder_model::class::Class;
use larder_sys::space::next_data;
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, FileType, Stat, xattr};

/// Size of one read, bytes.
const CHUNK: usize = 1 << 20;

/// Size from which a file is searched for holes even if all of it is reported as allocated, bytes. Some
/// read-only file systems report that for sparse files.
const LARGE: u64 = 1 << 20;

/// An observer of the progress of reading a tree.
pub trait TreeObserver {
    /// Reports whether the entry at `path`, relative to the top, is skipped with everything below it.
    fn is_skipped(&self, path: &[u8]) -> bool {
        let _ = path;
        false
    }

    /// Called after `bytes` more bytes were read. [`ControlFlow::Break`] aborts with [`TreeError::Stopped`].
    fn advance(&mut self, bytes: u64) -> ControlFlow<()>;
}

/// The reason why a tree cannot be written as an image.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// EROFS cannot store an entry, or the image cannot be written.
    #[error("{path:?}: {source}")]
    Entry {
        /// Path relative to the top, escaped.
        path: String,
        /// The cause reported by the writer.
        r#source: Error,
    },
    /// The tree cannot be read.
    #[error("{doing} {path:?}: {source}")]
    Read {
        /// The operation that failed.
        doing: &'static str,
        /// Path relative to the top, escaped.
        path: String,
        /// The cause reported by the system.
        r#source: io::Error,
    },
    /// A file changed while it was read.
    #[error("{path:?} changed while it was read")]
    Changed {
        /// Path relative to the top, escaped.
        path: String,
    },
    /// The observer requested a stop.
    #[error("interrupted")]
    Stopped,
}

impl TreeError {
    /// Returns the error class, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            TreeError::Entry { source, .. } => source.class(),
            TreeError::Read { source, .. } => io_class(source),
            TreeError::Changed { .. } => Class::Conflict,
            TreeError::Stopped => Class::Cancelled,
        }
    }
}

impl Writer<'_> {
    /// Writes everything below the directory `top`, and the metadata of `top` itself, into the root of the
    /// image.
    ///
    /// Skips the attributes of the host's security policy, because they do not belong to the tree.
    ///
    /// # Errors
    /// [`TreeError`]; after that, the image cannot be finished.
    pub fn tree(&mut self, top: Dir, watch: &mut dyn TreeObserver) -> Result<(), TreeError> {
        let read = |source| TreeError::Read { doing: "examining", path: ".".into(), source };
        let stat = top.stat_self().map_err(read)?;
        let attributes = xattr::all(&top).map_err(read)?;
        self.describe(InodeId::ROOT, &metadata(&stat, attributes)).map_err(entry(b""))?;
        let mut copy = Copy {
            writer: self,
            watch,
            directories: HashMap::from([(Vec::new(), InodeId::ROOT)]),
            links: HashMap::new(),
            buffer: vec![0; CHUNK],
        };
        walk(top, &mut copy)
    }
}

struct Copy<'c, 'a> {
    writer: &'c mut Writer<'a>,
    watch: &'c mut dyn TreeObserver,
    /// Directories that were created, but not entered yet.
    directories: HashMap<Vec<u8>, InodeId>,
    /// Inodes with several names, by device and inode number, with the number of names not seen yet.
    links: HashMap<(u64, u64), (InodeId, u64)>,
    buffer: Vec<u8>,
}

impl Visitor for Copy<'_, '_> {
    type Error = TreeError;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
        let Some(parent) = self.directories.remove(path) else { return Ok(Vec::new()) };
        let mut names = dir.names().map_err(read("listing", path))?;
        names.sort_unstable();
        let mut directories = Vec::new();
        for name in names {
            let at = path::join(path, &name);
            if self.watch.is_skipped(&at) {
                continue;
            }
            let stat = dir.stat(&name).map_err(read("examining", &at))?;
            if stat.is_dir() {
                let metadata = self.metadata(dir, &name, &at, &stat)?;
                let id = self.writer.directory(parent, &name, &metadata).map_err(entry(&at))?;
                self.directories.insert(at, id);
                directories.push(name);
                continue;
            }
            self.entry(dir, parent, &name, &at, &stat)?;
        }
        // The walk takes the last one first.
        directories.reverse();
        Ok(directories)
    }

    fn failed(&mut self, path: &[u8], source: io::Error) -> TreeError {
        read("opening", path)(source)
    }
}

impl Copy<'_, '_> {
    fn entry(
        &mut self,
        dir: &Dir,
        parent: InodeId,
        name: &[u8],
        at: &[u8],
        stat: &Stat,
    ) -> Result<(), TreeError> {
        if let Some((id, left)) = self.links.get_mut(&stat.identity) {
            self.writer.link(parent, name, *id).map_err(entry(at))?;
            *left -= 1;
            if *left == 0 {
                self.links.remove(&stat.identity);
            }
            return Ok(());
        }
        let metadata = self.metadata(dir, name, at, stat)?;
        let id = match stat.file_type {
            FileType::Regular => self.file(dir, parent, name, at, stat, &metadata)?,
            FileType::Symlink => {
                let target = dir.read_link(name).map_err(read("reading the link", at))?;
                self.writer.symlink(parent, name, &metadata, &target).map_err(entry(at))?
            }
            other => {
                let (major, minor) = stat.device;
                let special = match other {
                    FileType::CharDevice => Special::CharDevice(major, minor),
                    FileType::BlockDevice => Special::BlockDevice(major, minor),
                    FileType::Fifo => Special::Fifo,
                    _ => Special::Socket,
                };
                self.writer.special(parent, name, &metadata, special).map_err(entry(at))?
            }
        };
        if stat.links > 1 {
            self.links.insert(stat.identity, (id, stat.links - 1));
        }
        Ok(())
    }

    fn file(
        &mut self,
        dir: &Dir,
        parent: InodeId,
        name: &[u8],
        at: &[u8],
        stat: &Stat,
        metadata: &Metadata,
    ) -> Result<InodeId, TreeError> {
        let file = dir.open_file(name).map_err(read("opening", at))?;
        let changed = || TreeError::Changed { path: named(at) };
        let map = match stat.allocated < stat.size || stat.size >= LARGE {
            true => map(&file, stat.size).map_err(read("searching for data in", at))?,
            false => vec![Region { offset: 0, length: stat.size }],
        };
        let mut body = match map.as_slice() {
            [Region { offset: 0, length }] if *length == stat.size => {
                self.writer.file(parent, name, metadata)
            }
            _ if stat.size == 0 => self.writer.file(parent, name, metadata),
            map => self.writer.sparse(parent, name, metadata, stat.size, map),
        }
        .map_err(entry(at))?;
        for Region { offset, length } in map {
            let (mut offset, end) = (offset, offset + length);
            while offset < end {
                let want = usize::try_from(end - offset).map_or(CHUNK, |left| left.min(CHUNK));
                let len = file.read_at(&mut self.buffer[..want], offset).map_err(read("reading", at))?;
                if len == 0 {
                    return Err(changed());
                }
                body.write_at(offset, &self.buffer[..len]).map_err(entry(at))?;
                offset += len as u64;
                if self.watch.advance(len as u64).is_break() {
                    return Err(TreeError::Stopped);
                }
            }
        }
        body.end().map_err(entry(at))
    }

    fn metadata(&self, dir: &Dir, name: &[u8], at: &[u8], stat: &Stat) -> Result<Metadata, TreeError> {
        let attributes = xattr::all_at(dir, name).map_err(read("reading the attributes of", at))?;
        Ok(metadata(stat, attributes))
    }
}

/// Label of the host's security module, which does not belong to the tree.
const SELINUX: &[u8] = b"security.selinux";

fn metadata(stat: &Stat, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Metadata {
    xattrs.retain(|(name, _)| name != SELINUX);
    Metadata { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

/// Returns the regions that contain data in the first `size` bytes of a file.
fn map(file: &File, size: u64) -> io::Result<Vec<Region>> {
    let (mut map, mut at) = (Vec::new(), 0);
    while let Some(data) = next_data(file, at)?.filter(|data| data.start < size) {
        at = data.end.min(size);
        map.push(Region { offset: data.start, length: at - data.start });
    }
    Ok(map)
}

fn entry(path: &[u8]) -> impl FnOnce(Error) -> TreeError {
    move |source| TreeError::Entry { path: named(path), source }
}

fn read(doing: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> TreeError {
    move |source| TreeError::Read { doing, path: named(path), source }
}
