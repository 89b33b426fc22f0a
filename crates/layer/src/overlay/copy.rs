//! Copies inodes within a volume: one file up from a lower layer, or a whole layer for a second chain ID.

use std::fs::File;
use std::io;

use nix::errno::Errno;

use super::super::error::{Context, Error, named};
use super::super::metadata::Metadata;
use super::super::path;
use super::super::space::Space;
use super::super::stored::{StoredDir, StoredFile};
use super::STAGING_MODE;
use super::attributes::{Rights, Writer};
use larder_model::seal::Lost;
use larder_sys::space::{FileSystem, copy_data, reflink};
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, FileType, Stat};

/// A file to copy: its directory and name, and what was read of it.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Directory of the file.
    pub dir: &'a StoredDir,
    /// Name of the file.
    pub name: &'a [u8],
    /// File attributes of the file.
    pub stat: &'a Stat,
    /// Metadata for the copy.
    pub metadata: &'a Metadata,
}

/// Copies one inode to a new name: content (shared if the file system supports it), type and metadata.
///
/// # Errors
/// [`Error::Full`] or [`Error::Io`].
pub fn up(
    original: &Original<'_>,
    to: (&Dir, &[u8]),
    path: &[u8],
    space: &dyn Space,
    rights: Rights,
    lost: &mut Vec<Lost>,
) -> Result<(), Error> {
    let Original { dir: from, name: from_name, stat, metadata } = *original;
    let (to, to_name) = to;
    space.reserve(stat.allocated).map_err(|full| Error::Full { path: named(path), full })?;
    let mut writer = Writer { rights, lost };
    match stat.file_type {
        FileType::Regular => {
            let source = from.open_file(from_name).context("opening", path)?;
            let file = to.create_file(to_name, stat.mode & 0o777).context("creating", path)?;
            content(source, &file).context("copying", path)?;
            writer.new_file(&file, path, metadata)
        }
        FileType::Symlink => {
            let text = from.read_link(from_name).context("reading the link", path)?;
            to.symlink(&text, to_name).context("creating", path)?;
            writer.named(to, to_name, path, FileType::Symlink, metadata)
        }
        other => {
            to.make_node(to_name, other, stat.mode & 0o777, stat.device).context("creating", path)?;
            writer.named(to, to_name, path, other, metadata)
        }
    }
}

/// Copies the content of a file to the empty file `to`.
fn content(from: StoredFile, to: &File) -> io::Result<()> {
    match from {
        StoredFile::File(from) if reflink(&from, to)? => Ok(()),
        StoredFile::File(from) => copy_data(&from, to),
        StoredFile::Image(mut from) => io::copy(&mut from, &mut &*to).map(|_| ()),
    }
}

/// Creates a second tree of an unsettled layer, for a second chain ID: creates new directories and hard-links
/// everything else. The trees can share inodes because settling only changes directories.
///
/// # Errors
/// [`Error::Full`] or [`Error::Io`].
pub fn layer(from: &Dir, to: &Dir, space: &dyn Space, rights: Rights) -> Result<(), Error> {
    let block = FileSystem::of(to).context("examining the file system of", b"")?.block;
    let from = from.try_clone().context("opening", b"")?;
    let to = to.try_clone().context("opening", b"")?;
    walk(from, &mut Copy { to, space, rights, block })
}

/// Creates the copy while the walk visits the original; `to` is the directory that corresponds to the current
/// one.
struct Copy<'a> {
    to: Dir,
    space: &'a dyn Space,
    rights: Rights,
    block: u64,
}

impl Visitor for Copy<'_> {
    type Error = Error;

    fn enter(&mut self, from: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        // The directory of the copy grows at most to the size of the original, because it is filled in one
        // pass.
        let room = from.stat_self().context("examining", path)?.allocated.max(self.block) * 2;
        self.space.reserve(room).map_err(|full| Error::Full { path: named(path), full })?;
        let (_, name) = path::split(path);
        if !name.is_empty() {
            self.to.make_dir(name, STAGING_MODE).context("creating", path)?;
            self.to = self.to.open_dir(name).context("opening", path)?;
        }
        let mut directories = Vec::new();
        for name in from.names().context("listing", path)? {
            let at = path::join(path, &name);
            let stat = from.stat(&name).context("examining", &at)?;
            if stat.is_dir() {
                directories.push(name);
                continue;
            }
            match from.link(&name, &self.to, &name) {
                // The file system allows no more names for this inode (65,000 on ext4).
                Err(e) if e.raw_os_error() == Some(Errno::EMLINK as i32) => {
                    let from = StoredDir::Directory(from.try_clone().context("opening", path)?);
                    let metadata = from.metadata(&name, &stat).context("reading the attributes of", &at)?;
                    let original = Original { dir: &from, name: &name, stat: &stat, metadata: &metadata };
                    let to = (&self.to, &name[..]);
                    up(&original, to, &at, self.space, self.rights, &mut Vec::new())?;
                }
                other => other.context("linking", &at)?,
            }
        }
        let occupied = self.to.stat_self().context("examining", path)?.allocated;
        self.space.release(room.saturating_sub(occupied));
        Ok(directories)
    }

    fn leave(&mut self, _: &Dir, name: &[u8]) -> Result<(), Error> {
        self.to = self.to.open_dir(b"..").context("leaving", name)?;
        Ok(())
    }

    fn failed(&mut self, path: &[u8], error: io::Error) -> Error {
        Error::io("walking", path, error)
    }
}
