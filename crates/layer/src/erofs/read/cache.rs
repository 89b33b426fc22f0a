//! Reads from an image, with a cache of recently read metadata blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::super::format::BLOCK;
use super::corrupt;

/// Number of cached blocks, one for each remainder of the block number: 2 MiB.
const KEPT: usize = 512;

/// Cached blocks with their numbers.
type Kept = Vec<Option<(u64, Box<[u8; BLOCK]>)>>;

/// The bytes of an image.
#[derive(Debug)]
pub(super) struct Cache {
    file: File,
    len: u64,
    blocks: Mutex<Kept>,
}

impl Cache {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len == 0 || !len.is_multiple_of(BLOCK as u64) {
            return Err(corrupt("its length is wrong"));
        }
        Ok(Cache { file, len, blocks: Mutex::new(vec![const { None }; KEPT]) })
    }

    /// Limits the image to its first `len` bytes; returns `false` if the file is shorter.
    pub(super) fn cut(&mut self, len: u64) -> bool {
        let is_there = len > 0 && len <= self.len;
        self.len = self.len.min(len);
        is_there
    }

    /// Reports whether the `len` bytes at `at` lie in the image.
    pub(super) fn has(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Reads bytes of metadata through the cache.
    pub(super) fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        if !self.has(at, to.len() as u64) {
            return Err(corrupt("a position is outside of the image"));
        }
        let mut blocks = self.blocks();
        let (mut at, mut to) = (at, to);
        while !to.is_empty() {
            let number = at / BLOCK as u64;
            let offset = usize::try_from(at % BLOCK as u64).unwrap_or_default();
            let len = to.len().min(BLOCK - offset);
            let (head, rest) = to.split_at_mut(len);
            let slot = usize::try_from(number % KEPT as u64).unwrap_or_default();
            match &mut blocks[slot] {
                Some((known, block)) if *known == number => {
                    head.copy_from_slice(&block[offset..offset + len])
                }
                other => {
                    let mut block = Box::new([0; BLOCK]);
                    self.file.read_exact_at(&mut block[..], number * BLOCK as u64)?;
                    head.copy_from_slice(&block[offset..offset + len]);
                    *other = Some((number, block));
                }
            }
            at += len as u64;
            to = rest;
        }
        Ok(())
    }

    /// Reads content, which is not cached.
    pub(super) fn read_content(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        match self.has(at, to.len() as u64) {
            true => self.file.read_exact_at(to, at),
            false => Err(corrupt("a position is outside of the image")),
        }
    }

    fn blocks(&self) -> MutexGuard<'_, Kept> {
        // A panic cannot leave a partial block.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
