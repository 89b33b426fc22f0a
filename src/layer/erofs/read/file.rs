//! The content of a regular file of an image.

use std::io::{self, Read};

use super::ImageNode;

/// A file that is being read.
#[derive(Debug)]
pub struct ImageFile {
    node: ImageNode,
    at: u64,
}

impl ImageFile {
    pub(super) fn new(node: ImageNode) -> Self {
        ImageFile { node, at: 0 }
    }

    /// Size, bytes.
    pub fn size(&self) -> u64 {
        self.node.inode.size
    }

    /// Fills all of `to` from `offset` on, within the size.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read_exact_at(&self, to: &mut [u8], offset: u64) -> io::Result<()> {
        self.node.inode.read_at(&self.node.image, offset, to)
    }
}

impl Read for ImageFile {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size() - self.at).unwrap_or(usize::MAX);
        let len = left.min(to.len());
        self.read_exact_at(&mut to[..len], self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}
