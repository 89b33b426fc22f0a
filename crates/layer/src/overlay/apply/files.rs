//! Writes regular files, either completely on this thread or with their contents on another one.

use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::Ordering;

use super::super::super::apply::Failure;
use super::super::super::error::{Context, Error};
use super::super::super::metadata::Metadata;
use super::super::super::tar::{Reader, Record};
use super::super::contents::{self, Contents};
use super::{Destination, Overlay};
use larder_sys::dir;
use larder_sys::space::preallocate;

/// File size from which blocks are preallocated on a file system that would otherwise allocate too many,
/// bytes.
const PREALLOCATE_FROM: u64 = 64 * 1024;

/// File size from which the allocated size is checked when the file is complete, bytes.
const MEASURE_FROM: u64 = 1 << 20;

impl Overlay<'_> {
    /// Writes a file without holes.
    pub(super) fn regular<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Destination,
        size: u64,
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        let at = &destination.at;
        let room = self.tree.file_system().round_up(size) + self.xattr_room(metadata);
        self.tree.reserve(room, at)?;
        let mut file = self.create_file(destination, metadata.mode)?;
        if size >= PREALLOCATE_FROM && self.tree.file_system().is_xfs {
            preallocate(&file, 0, size).context("allocating", at)?;
        }
        if self.is_written_by_thread(size, metadata)
            && let Some(contents) = &mut self.contents
        {
            let start = contents.bytes().len();
            while let Some(chunk) = reader.data().map_err(Failure::Tar)? {
                contents.bytes().extend_from_slice(chunk.bytes);
            }
            reader.end_file(at).map_err(Failure::Tar)?;
            return Ok(contents.add(file, start, at, metadata)?);
        }
        while let Some(chunk) = reader.data().map_err(Failure::Tar)? {
            file.write_all(chunk.bytes).context("writing", at)?;
            self.written.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        }
        reader.end_file(at).map_err(Failure::Tar)?;
        self.writer().new_file(&file, at, metadata)?;
        if size >= MEASURE_FROM || !metadata.xattrs.is_empty() {
            self.measure(&file, at, room)?;
        }
        Ok(())
    }

    /// Writes a sparse file. Only the regions that contain data are written, so that holes are preserved.
    pub(super) fn with_holes<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Destination,
        size: u64,
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        let at = &destination.at;
        let xattr_room = self.xattr_room(metadata);
        self.tree.reserve(xattr_room, at)?;
        let file = self.create_file(destination, metadata.mode)?;
        // Set before writing the data, because xfs allocates more blocks than needed for a file that grows.
        file.set_len(size).context("setting the size of", at)?;
        let block = self.tree.file_system().block;
        let mut room = xattr_room;
        let mut reserved_to = 0;
        while let Some(chunk) = reader.data().map_err(Failure::Tar)? {
            let end = chunk.offset + chunk.bytes.len() as u64;
            let from = reserved_to.max(chunk.offset / block * block);
            let to = self.tree.file_system().round_up(end);
            if to > from {
                self.tree.reserve(to - from, at)?;
                room += to - from;
                reserved_to = to;
            }
            file.write_all_at(chunk.bytes, chunk.offset).context("writing", at)?;
            self.written.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
        }
        self.writer().new_file(&file, at, metadata)?;
        self.without_content.insert(at);
        Ok(self.measure(&file, at, room)?)
    }

    /// Waits for the content of all files so far.
    pub(super) fn wait(&mut self) -> Result<(), Error> {
        self.contents.as_mut().map_or(Ok(()), Contents::wait)
    }

    /// Reports whether the other thread writes a file: a core is idle, no metadata can be lost, and nothing
    /// must be measured.
    fn is_written_by_thread(&self, size: u64, metadata: &Metadata) -> bool {
        let keeps_owner = !self.rights.rootless || (metadata.uid, metadata.gid) == self.rights.ids;
        size <= contents::MAX_FILE_BYTES
            && metadata.xattrs.is_empty()
            && metadata.has_common_time()
            && keeps_owner
            && self.cores.has_idle()
    }

    fn create_file(&mut self, destination: &Destination, mode: u32) -> Result<File, Error> {
        let file = self.create(destination, |dir, name| dir.create_file(name, mode & 0o777))?;
        self.without_content.remove(&destination.at);
        Ok(file)
    }

    fn measure(&mut self, file: &File, at: &[u8], reserved: u64) -> Result<(), Error> {
        let allocated = dir::stat_fd(file).context("examining", at)?.allocated;
        self.correct(at, reserved, allocated)
    }
}
