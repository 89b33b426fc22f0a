//! Packs inodes into blocks, so that none crosses a block boundary.
//!
//! Each inode goes into the fullest of a few open blocks that has space for it. For /usr/share of a Debian
//! system, one open block takes 2 % more space, and an unlimited number 0.3 % less. Blocks are numbered when
//! they are closed, so that their data in the spill file is read in order.

use super::error::Error;
use super::format::{BLOCK, COMPACT, SLOT};

/// Maximum number of open blocks.
const OPEN: usize = 8;

/// Blocks that are being filled, each with content of type `T`.
#[derive(Debug)]
pub(super) struct Packer<T> {
    open: Vec<Open<T>>,
    packed: Packed,
}

/// The space that inodes take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Packed {
    pub(super) blocks: u32,
    /// Number of bytes used in the last block.
    pub(super) last: usize,
}

#[derive(Debug)]
struct Open<T> {
    used: usize,
    content: T,
}

impl<T: Default> Packer<T> {
    pub(super) fn new() -> Self {
        Packer { open: Vec::with_capacity(OPEN), packed: Packed::default() }
    }

    /// Finds space for `len` bytes, at most a block. Returns the offset in a block and the content of that
    /// block. Passes completed blocks to `close` with their number, in order.
    pub(super) fn place(
        &mut self,
        len: usize,
        close: &mut impl FnMut(u32, T) -> Result<(), Error>,
    ) -> Result<(usize, &mut T), Error> {
        if len > BLOCK {
            return Err(Error::Fault("an inode is larger than a block"));
        }
        if let Some(full) = self.open.iter().position(|open| open.used > BLOCK - COMPACT) {
            self.close(full, close)?;
        }
        let fitting = self.open.iter().enumerate().filter(|(_, open)| open.used + len <= BLOCK);
        let at = match fitting.max_by_key(|(at, open)| (open.used, usize::MAX - at)) {
            Some((at, _)) => at,
            None => {
                if self.open.len() == OPEN {
                    self.close_fullest(close)?;
                }
                self.open.push(Open { used: 0, content: T::default() });
                self.open.len() - 1
            }
        };
        let open = &mut self.open[at];
        let offset = open.used;
        open.used = (offset + len).next_multiple_of(SLOT);
        Ok((offset, &mut open.content))
    }

    /// Allocates whole blocks for a single inode of `len` bytes; returns the number of the first.
    pub(super) fn run(&mut self, len: u64) -> Result<u32, Error> {
        let first = self.packed.blocks;
        let blocks = u32::try_from(len.div_ceil(BLOCK as u64)).map_err(|_| Error::TooMuchMetadata)?;
        self.packed.blocks = first.checked_add(blocks).ok_or(Error::TooMuchMetadata)?;
        self.packed.last = BLOCK;
        Ok(first)
    }

    /// Closes the open blocks and returns the space taken.
    pub(super) fn finish(
        mut self,
        close: &mut impl FnMut(u32, T) -> Result<(), Error>,
    ) -> Result<Packed, Error> {
        while !self.open.is_empty() {
            self.close(0, close)?;
        }
        Ok(self.packed)
    }

    fn close_fullest(&mut self, close: &mut impl FnMut(u32, T) -> Result<(), Error>) -> Result<(), Error> {
        let all = self.open.iter().enumerate();
        match all.max_by_key(|(at, open)| (open.used, usize::MAX - at)) {
            Some((at, _)) => self.close(at, close),
            None => Ok(()),
        }
    }

    fn close(&mut self, at: usize, close: &mut impl FnMut(u32, T) -> Result<(), Error>) -> Result<(), Error> {
        let open = self.open.remove(at);
        let number = self.run(BLOCK as u64)?;
        self.packed.last = open.used;
        close(number, open.content)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the positions of units in blocks. Checks that the blocks were closed in order.
    fn pack(lengths: &[usize]) -> (Vec<(u32, usize)>, Packed) {
        let mut places = vec![(0, 0); lengths.len()];
        let mut numbers = Vec::new();
        let mut packer: Packer<Vec<(usize, usize)>> = Packer::new();
        let mut close = |number, units: Vec<(usize, usize)>| {
            numbers.push(number);
            units.into_iter().for_each(|(unit, offset)| places[unit] = (number, offset));
            Ok(())
        };
        for (unit, len) in lengths.iter().enumerate() {
            let (offset, units) = packer.place(*len, &mut close).unwrap();
            units.push((unit, offset));
        }
        let packed = packer.finish(&mut close).unwrap();
        assert_eq!(numbers, (0..packed.blocks).collect::<Vec<_>>());
        (places, packed)
    }

    proptest! {
        #[test]
        fn nothing_crosses_a_block_or_another(lengths in prop::collection::vec(32..=BLOCK, 0..300)) {
            let (places, packed) = pack(&lengths);
            let mut ends: Vec<(u32, usize, usize)> = places
                .iter()
                .zip(&lengths)
                .map(|((block, offset), len)| (*block, *offset, offset + len))
                .collect();
            ends.sort_unstable();
            for (block, offset, end) in &ends {
                prop_assert!(*end <= BLOCK && offset % SLOT == 0 && *block < packed.blocks);
            }
            for pair in ends.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 || pair[0].2 <= pair[1].1);
            }
        }
    }

    #[test]
    fn small_units_fill_blocks() {
        assert_eq!(pack(&[64; 640]).1, Packed { blocks: 10, last: BLOCK });
        // Two out of three fit in one block.
        assert_eq!(pack(&[3000, 1000].repeat(100)).1.blocks, 100);
    }

    #[test]
    fn metadata_has_an_end() {
        let mut packer: Packer<()> = Packer::new();
        assert_eq!(packer.run(u64::from(u32::MAX) * BLOCK as u64).unwrap(), 0);
        assert!(matches!(packer.run(1), Err(Error::TooMuchMetadata)));
        assert!(matches!(packer.place(BLOCK + 1, &mut |_, ()| Ok(())), Err(Error::Fault(_))));
    }
}
