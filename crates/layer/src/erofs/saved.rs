//! Reads content back from an image that is not finished.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use super::format::BLOCK;

/// A reader of the content of one file.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(super) image: File,
    pub(super) spill: File,
    /// First block of the content.
    pub(super) first: u32,
    /// Number of bytes in whole blocks.
    pub(super) whole: u64,
    pub(super) size: u64,
    /// Offset of the remaining bytes in the spill file.
    pub(super) tail_at: u64,
    pub(super) at: u64,
}

impl Read for Saved {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let (file, from, end) = if self.at < self.whole {
            (&self.image, u64::from(self.first) * BLOCK as u64 + self.at, self.whole)
        } else {
            (&self.spill, self.tail_at + (self.at - self.whole), self.size)
        };
        let len = usize::try_from(end - self.at).map_or(to.len(), |left| left.min(to.len()));
        file.read_exact_at(&mut to[..len], from)?;
        self.at += len as u64;
        Ok(len)
    }
}
