//! Maps of sparse files: old GNU headers and the three PAX versions (GNU tar manual, "Storing Sparse Files").

use super::{Fault, number};

/// A region of data in a sparse file. Everything outside all regions is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Offset of the region in the file, bytes.
    pub offset: u64,
    /// Length of the region, bytes. A length of 0 marks the end of a file that ends in a hole.
    pub length: u64,
}

/// Builds a map from single numbers: offset, length, offset, length …
pub(super) struct Pairs {
    map: Vec<Region>,
    offset: Option<u64>,
    max: usize,
}

impl Pairs {
    pub(super) fn new(max: usize) -> Self {
        Pairs { map: Vec::new(), offset: None, max }
    }

    pub(super) fn offset(&mut self, value: &[u8]) -> Result<(), Fault> {
        match self.offset.replace(number_of(value)?) {
            None => Ok(()),
            Some(_) => Err(Fault::Sparse("an offset without a length")),
        }
    }

    pub(super) fn length(&mut self, value: &[u8]) -> Result<(), Fault> {
        let offset = self.offset.take().ok_or(Fault::Sparse("a length without an offset"))?;
        let length = number_of(value)?;
        self.push(Region { offset, length })
    }

    pub(super) fn push(&mut self, region: Region) -> Result<(), Fault> {
        if self.map.len() == self.max {
            return Err(too_many(self.max as u64 + 1, self.max));
        }
        self.map.push(region);
        Ok(())
    }

    /// Returns the map; `None` if it received no number.
    pub(super) fn finish(self) -> Result<Option<Vec<Region>>, Fault> {
        if self.offset.is_some() {
            return Err(Fault::Sparse("an offset without a length"));
        }
        Ok((!self.map.is_empty()).then_some(self.map))
    }

    /// Adds the regions of an old GNU header or of one of its extension blocks. An empty region ends them.
    pub(super) fn old_gnu(&mut self, fields: &[u8]) -> Result<(), Fault> {
        for entry in fields.chunks_exact(24) {
            let (offset, length) = entry.split_at(12);
            if offset[0] == 0 {
                break;
            }
            let offset = number::size(number::field(offset, "sparse offset")?, "sparse offset")?;
            let length = number::size(number::field(length, "sparse length")?, "sparse length")?;
            self.push(Region { offset, length })?;
        }
        Ok(())
    }
}

/// Parses the map of PAX 0.1: all numbers in one value, separated by commas.
pub(super) fn parse_list(value: &[u8], max: usize) -> Result<Option<Vec<Region>>, Fault> {
    if value.is_empty() {
        return Ok(None);
    }
    let mut pairs = Pairs::new(max);
    let mut numbers = value.split(|b| *b == b',');
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(Fault::Sparse("an offset without a length"))?;
        pairs.offset(offset)?;
        pairs.length(length)?;
    }
    pairs.finish()
}

/// Parses the map of PAX 1.0: one number per line at the start of the data, the number of regions first,
/// padded to a block.
pub(super) struct Lines {
    left: Option<u64>,
    line: Vec<u8>,
    pairs: Pairs,
}

impl Lines {
    pub(super) fn new(max: usize) -> Self {
        Lines { left: None, line: Vec::new(), pairs: Pairs::new(max) }
    }

    /// Adds one block; returns `true` once the map is complete. The rest of its last block is padding.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<bool, Fault> {
        for byte in block {
            if self.is_whole() {
                break;
            }
            if *byte != b'\n' {
                if self.line.len() == 20 {
                    return Err(Fault::Sparse("a number of more than 20 digits"));
                }
                self.line.push(*byte);
                continue;
            }
            self.number()?;
            self.line.clear();
        }
        Ok(self.is_whole())
    }

    fn is_whole(&self) -> bool {
        self.left == Some(0)
    }

    fn number(&mut self) -> Result<(), Fault> {
        let Some(left) = &mut self.left else {
            let count = number_of(&self.line)?;
            if count > self.pairs.max as u64 {
                return Err(too_many(count, self.pairs.max));
            }
            self.left = Some(2 * count);
            return Ok(());
        };
        *left -= 1;
        if *left % 2 == 1 { self.pairs.offset(&self.line) } else { self.pairs.length(&self.line) }
    }

    pub(super) fn finish(self) -> Result<Vec<Region>, Fault> {
        Ok(self.pairs.finish()?.unwrap_or_default())
    }
}

/// Checks that a map is ordered, without overlaps, within `size`, and has exactly `stored` bytes of data.
pub(super) fn validate(map: &[Region], size: u64, stored: u64) -> Result<(), Fault> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for region in map {
        if region.offset < end {
            return Err(Fault::Sparse("regions overlap or are out of order"));
        }
        end = region
            .offset
            .checked_add(region.length)
            .filter(|end| *end <= size)
            .ok_or(Fault::Sparse("a region extends beyond the end of the file"))?;
        sum += region.length;
    }
    if sum != stored {
        return Err(Fault::Sparse("its regions and the stored data differ in size"));
    }
    Ok(())
}

fn number_of(value: &[u8]) -> Result<u64, Fault> {
    let number = number::decimal(value).and_then(|n| u64::try_from(n).ok());
    number.ok_or(Fault::Sparse("not a decimal number"))
}

fn too_many(have: u64, max: usize) -> Fault {
    Fault::Limit { quantity: "regions in a sparse map", have, limit: max as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(u64, u64)]) -> Vec<Region> {
        pairs.iter().map(|&(offset, length)| Region { offset, length }).collect()
    }

    #[test]
    fn maps_that_make_no_sense_are_refused() {
        assert_eq!(validate(&map(&[(0, 5), (5, 0), (10, 2)]), 12, 7), Ok(()));
        assert_eq!(validate(&[], 1 << 40, 0), Ok(()));
        for (pairs, size, stored) in [
            (&[(0, 5), (4, 2)][..], 12, 7),
            (&[(10, 2), (0, 5)], 12, 7),
            (&[(0, 13)], 12, 13),
            (&[(u64::MAX, 2)], u64::MAX, 2),
            (&[(0, 5)], 12, 6),
            (&[(0, 5)], 12, 4),
        ] {
            assert!(validate(&map(pairs), size, stored).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn lines_end_with_the_block_of_the_last_number() {
        let mut lines = Lines::new(8);
        assert_eq!(lines.block(b"2\n0\n5\n1"), Ok(false));
        assert_eq!(lines.block(b"0\n2\n\0\0\0garbage\n"), Ok(true));
        assert_eq!(lines.finish(), Ok(map(&[(0, 5), (10, 2)])));
        assert!(Lines::new(8).block(b"9\n").is_err());
        assert!(Lines::new(8).block(&[b'1'; 30]).is_err());
        assert!(Lines::new(8).block(b"-1\n").is_err());
    }

    #[test]
    fn a_list_has_pairs() {
        assert_eq!(parse_list(b"0,5,10,2", 8), Ok(Some(map(&[(0, 5), (10, 2)]))));
        assert_eq!(parse_list(b"", 8), Ok(None));
        for bad in [&b"0"[..], b"0,5,", b"0,5,7", b",", b"0,-5", b"a,b"] {
            assert!(parse_list(bad, 8).is_err(), "{}", bad.escape_ascii());
        }
        assert!(parse_list(b"0,1,2,1,4,1", 2).is_err());
    }
}
