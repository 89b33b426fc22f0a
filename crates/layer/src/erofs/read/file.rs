//! The content of a regular file in an image.

use std::io::{self, Read, Seek, SeekFrom};

use super::ImageNode;
use crate::tar::Region;

/// A reader of a regular file.
#[derive(Debug)]
pub struct ImageFile {
    node: ImageNode,
    at: u64,
}

impl ImageFile {
    pub(super) fn new(node: ImageNode) -> Self {
        ImageFile { node, at: 0 }
    }

    /// Returns the size of the file, bytes.
    pub fn size(&self) -> u64 {
        self.node.inode.size
    }

    /// Returns the regions that contain data.
    ///
    /// # Errors
    /// Errors of reading the image.
    pub fn regions(&self) -> io::Result<Vec<Region>> {
        self.node.regions()
    }

    /// Fills `to` from `offset` on, which must lie within the size.
    ///
    /// # Errors
    /// Errors of reading the image.
    pub fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        self.node.inode.read_at(&self.node.image, offset, to)
    }
}

impl Read for ImageFile {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size().saturating_sub(self.at)).unwrap_or(usize::MAX);
        let len = left.min(to.len());
        self.read_exact_at(&mut to[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for ImageFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
