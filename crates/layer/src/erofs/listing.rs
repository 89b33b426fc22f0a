//! Directories as blocks: entries in byte order of their names, first all headers, then all names.
//!
//! `.` and `..` are ordinary entries, sorted by their bytes: names that start with `!` or `-` precede them.

use std::ops::Bound;

use super::error::Error;
use super::format::{BLOCK, ENTRY, Put, entry_type};
use super::inode::{Directory, InodeId};
use larder_sys::FileType;

/// An entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: InodeId,
}

/// The space that a directory takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) blocks: u64,
    /// Number of bytes in the last block.
    pub(super) last: usize,
}

impl Directory {
    /// Returns all entries in order.
    fn listing(&self, itself: InodeId) -> impl Iterator<Item = Entry<'_>> {
        let dots = |name: &'static [u8], inode| std::iter::once(Entry { name, inode });
        let between = |from: Bound<&[u8]>, to: Bound<&[u8]>| {
            self.entries.range::<[u8], _>((from, to)).map(|(name, inode)| Entry { name, inode: *inode })
        };
        let (one, two): (&[u8], &[u8]) = (b".", b"..");
        between(Bound::Unbounded, Bound::Excluded(one))
            .chain(dots(b".", itself))
            .chain(between(Bound::Excluded(one), Bound::Excluded(two)))
            .chain(dots(b"..", self.parent))
            .chain(between(Bound::Excluded(two), Bound::Unbounded))
    }

    /// Calls `each` for every block in order, with its entries and its length in bytes.
    pub(super) fn blocks(
        &self,
        itself: InodeId,
        mut each: impl FnMut(&[Entry<'_>], usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut block = Vec::new();
        let mut used = 0;
        for entry in self.listing(itself) {
            let len = ENTRY + entry.name.len();
            if used + len > BLOCK {
                each(&block, used)?;
                block.clear();
                used = 0;
            }
            block.push(entry);
            used += len;
        }
        each(&block, used)
    }

    /// Returns the space that the directory takes.
    pub(super) fn extent(&self, itself: InodeId) -> Result<Extent, Error> {
        let mut extent = Extent { blocks: 0, last: 0 };
        self.blocks(itself, |_, used| {
            extent = Extent { blocks: extent.blocks + 1, last: used };
            Ok(())
        })?;
        Ok(extent)
    }
}

/// Appends one block without padding.
pub(super) fn write(
    entries: &[Entry<'_>],
    find: impl Fn(InodeId) -> (u64, FileType),
    to: &mut Vec<u8>,
) -> Result<(), Error> {
    let heads = to.len();
    to.resize(heads + entries.len() * ENTRY, 0);
    let mut name_at = entries.len() * ENTRY;
    for (at, entry) in entries.iter().enumerate() {
        let (number, file_type) = find(entry.inode);
        let mut put = Put(&mut to[heads + at * ENTRY..]);
        put.u64(0, number);
        put.u16(8, u16::try_from(name_at).map_err(|_| Error::Fault("a block of a directory is too long"))?);
        put.u8(10, entry_type(file_type));
        to.extend_from_slice(entry.name);
        name_at += entry.name.len();
    }
    Ok(())
}
