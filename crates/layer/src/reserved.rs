//! A file that grows within the size cap of the volume.

use std::fs::File;
use std::io::{self, Write};

use super::space::Space;
use larder_model::shortage::Shortage;
use larder_sys::space::{FileSystem, preallocate};

/// Unit in which space for a growing file is reserved, bytes. No supported file system uses larger blocks.
pub(super) const BLOCK: u64 = 4096;

/// A file that is written sequentially, with space reserved before each write.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    file: File,
    space: &'a dyn Space,
    is_xfs: bool,
    written: u64,
}

impl<'a> Reserved<'a> {
    /// Wraps an empty file.
    pub(super) fn new(file: File, space: &'a dyn Space) -> io::Result<Self> {
        let is_xfs = FileSystem::of(&file)?.is_xfs;
        Ok(Reserved { file, space, is_xfs, written: 0 })
    }

    /// Reserves space for `bytes`, a whole number of blocks, that are written after the current end by other
    /// means.
    pub(super) fn claim(&mut self, bytes: u64) -> io::Result<()> {
        self.space.reserve(bytes).map_err(|full| io::Error::new(io::ErrorKind::StorageFull, NoRoom(full)))?;
        if self.is_xfs && bytes > 0 {
            preallocate(&self.file, self.written.div_ceil(BLOCK) * BLOCK, bytes)?;
        }
        Ok(())
    }

    /// Returns the underlying file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the number of bytes written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }
}

impl Write for Reserved<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (before, after) =
            (self.written.div_ceil(BLOCK), (self.written + bytes.len() as u64).div_ceil(BLOCK));
        self.space
            .reserve((after - before) * BLOCK)
            .map_err(|full| io::Error::new(io::ErrorKind::StorageFull, NoRoom(full)))?;
        if self.is_xfs && after > before {
            preallocate(&self.file, before * BLOCK, (after - before) * BLOCK)?;
        }
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoRoom(Shortage);
