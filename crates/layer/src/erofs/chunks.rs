//! Files with holes: chunks of a fixed size, of which only those that contain data are stored.
//!
//! Small chunks need a long list; large chunks store zeros. The chunk size with the least total space is
//! chosen.

use super::super::tar::Region;
use super::error::Error;
use super::format::BLOCK;

/// Maximum chunk size, as a power of two of blocks; the format has five bits for it.
const MAX_BITS: u8 = 31;

/// Length of an item in the list of chunks, bytes.
pub(super) const ITEM: u64 = 4;

/// Length of a run record in the spill, bytes.
pub(super) const RUN: usize = 16;

const BLOCK_BITS: u8 = 12;
const _: () = assert!(1 << BLOCK_BITS == BLOCK);

/// Consecutive chunks that are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl Run {
    pub(super) fn to_bytes(self) -> [u8; RUN] {
        let mut bytes = [0; RUN];
        bytes[..8].copy_from_slice(&self.first.to_le_bytes());
        bytes[8..].copy_from_slice(&self.count.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; RUN]) -> Self {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        Run { first: number(0), count: number(8) }
    }
}

/// The layout of a file with holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Size of a chunk: 2^`bits` blocks.
    pub(super) bits: u8,
    pub(super) runs: Vec<Run>,
}

impl Plan {
    /// Returns start and end of a run in a file of `size` bytes.
    pub(super) fn span(&self, run: Run, size: u64) -> (u64, u64) {
        let shift = shift(self.bits);
        (run.first << shift, end_of(run, shift).min(size))
    }
}

/// Returns the end of a run, bytes.
fn end_of(run: Run, shift: u8) -> u64 {
    let end = run.first.saturating_add(run.count);
    end.checked_shl(shift.into()).filter(|bytes| bytes >> shift == end).unwrap_or(u64::MAX)
}

/// Returns the size of a chunk of 2^`bits` blocks, as a power of two of bytes.
pub(super) fn shift(bits: u8) -> u8 {
    bits + BLOCK_BITS
}

/// Returns the number of chunks of 2^`bits` blocks in `size` bytes.
pub(super) fn count(size: u64, bits: u8) -> u64 {
    size.div_ceil(1 << shift(bits))
}

/// Chooses how to store a file of `size` bytes with data in `regions`. Returns `None` if its holes save no
/// space. Regions of length 0 contain no data: GNU tar ends the map of every file with one.
pub(super) fn plan(size: u64, regions: &[Region]) -> Result<Option<Plan>, Error> {
    let mut end = 0;
    for region in regions {
        let after = region.offset.checked_add(region.length).filter(|after| *after <= size);
        if region.offset < end {
            return Err(Error::Map);
        }
        end = after.ok_or(Error::Map)?;
    }
    let regions: Vec<Region> = regions.iter().copied().filter(|region| region.length > 0).collect();
    let regions = &regions[..];
    if i64::try_from(size).is_err() {
        return Err(Error::TooLarge);
    }
    let whole = u128::from(size.next_multiple_of(BLOCK as u64));
    let costs = (0..=MAX_BITS).map(|bits| (cost(size, regions, bits), bits));
    match costs.min() {
        Some((cost, bits)) if cost < whole => {
            let runs = runs(regions, shift(bits)).collect();
            Ok(Some(Plan { bits, runs }))
        }
        _ => Ok(None),
    }
}

/// Returns the space that a file takes with chunks of 2^`bits` blocks, bytes.
fn cost(size: u64, regions: &[Region], bits: u8) -> u128 {
    let shift = shift(bits);
    let end = size.next_multiple_of(BLOCK as u64);
    let stored =
        runs(regions, shift).map(|run| u128::from(end_of(run, shift).min(end) - (run.first << shift)));
    u128::from(count(size, bits)) * u128::from(ITEM) + stored.sum::<u128>()
}

/// Returns the chunks of 2^`shift` bytes that contain data.
fn runs(regions: &[Region], shift: u8) -> impl Iterator<Item = Run> {
    let mut regions = regions
        .iter()
        .map(move |region| (region.offset >> shift, (region.offset + region.length - 1) >> shift));
    let mut next = regions.next();
    std::iter::from_fn(move || {
        let (first, mut last) = next?;
        next = regions.next();
        while let Some((begin, end)) = next
            && begin <= last.saturating_add(1)
        {
            last = end;
            next = regions.next();
        }
        Some(Run { first, count: last - first + 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(offset: u64, length: u64) -> Region {
        Region { offset, length }
    }

    #[test]
    fn maps() {
        let bad: [&[Region]; 5] = [
            &[region(101, 0)],
            &[region(0, 10), region(5, 1)],
            &[region(8, 1), region(0, 1)],
            &[region(0, 101)],
            &[region(1, u64::MAX)],
        ];
        for map in bad {
            assert!(matches!(plan(100, map), Err(Error::Map)), "{map:?}");
        }
        assert!(matches!(plan(u64::MAX, &[]), Err(Error::TooLarge)));
    }

    #[test]
    fn regions_without_data_change_nothing() {
        let ends_in_a_hole = [region(0, 5), region(1 << 20, 0)];
        assert_eq!(plan(1 << 20, &ends_in_a_hole).unwrap(), plan(1 << 20, &[region(0, 5)]).unwrap());
        let between = [region(0, 0), region(8192, 4096), region(12288, 0), region(12288, 0)];
        assert_eq!(plan(12288, &between).unwrap(), plan(12288, &[region(8192, 4096)]).unwrap());
        assert_eq!(plan(0, &[region(0, 0)]).unwrap(), None);
    }

    #[test]
    fn holes_that_save_nothing_are_filled() {
        assert_eq!(plan(0, &[]).unwrap(), None);
        assert_eq!(plan(4096, &[region(4095, 1)]).unwrap(), None);
        assert_eq!(plan(8192, &[region(0, 1), region(4096, 1)]).unwrap(), None);
    }

    #[test]
    fn chunk_sizes() {
        // One byte in the second of two blocks: the first block is a hole.
        let run = |first, count| Run { first, count };
        assert_eq!(plan(8192, &[region(4096, 1)]).unwrap(), Some(Plan { bits: 0, runs: vec![run(1, 1)] }));
        // A file that is one hole, of any size: one item.
        let empty = plan(1 << 40, &[]).unwrap().unwrap();
        assert_eq!((count(1 << 40, empty.bits), empty.runs.len()), (1, 0));
        let largest = plan(i64::MAX as u64, &[]).unwrap().unwrap();
        assert_eq!(count(i64::MAX as u64, largest.bits), 1 << 20);
        // One byte at each end of 1 TiB: neither a list of 2^28 items nor half of the file in zeros.
        let map = [region(0, 1), region((1 << 40) - 1, 1)];
        let far = plan(1 << 40, &map).unwrap().unwrap();
        assert!(cost(1 << 40, &map, far.bits) < 16 << 20, "{far:?}");
        // Adjacent chunks form one run.
        let near = plan(1 << 20, &[region(0, 5000), region(9000, 1), region(65536, 1)]).unwrap().unwrap();
        assert_eq!(near, Plan { bits: 0, runs: vec![run(0, 3), run(16, 1)] });
    }
}
