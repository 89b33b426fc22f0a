//! Reads the directories of an image.

use std::io;

use super::super::format::{BLOCK, ENTRY, Get, NAME_MAX, type_of_entry};
use super::inode::Inode;
use super::{Image, corrupt};
use larder_sys::FileType;

/// One block of a directory.
struct Block {
    bytes: Vec<u8>,
    count: usize,
}

impl Block {
    /// Reads a block and checks its structure.
    fn read(image: &Image, inode: &Inode, number: u64) -> io::Result<Self> {
        let at = number * BLOCK as u64;
        let len = usize::try_from(inode.size - at).map_or(BLOCK, |left| left.min(BLOCK));
        let mut bytes = vec![0; len];
        inode.read_at(image, at, &mut bytes)?;
        let fault = || corrupt("a directory block is malformed");
        if len < ENTRY {
            return Err(fault());
        }
        let first = usize::from(Get(&bytes).u16(8));
        if first < ENTRY || first > len || !first.is_multiple_of(ENTRY) {
            return Err(fault());
        }
        let block = Block { count: first / ENTRY, bytes };
        for at in 0..block.count {
            let (start, end) = block.span(at);
            if start > end || end > len || end - start > NAME_MAX || start == end {
                return Err(fault());
            }
            let name = block.name(at);
            if name.contains(&0) || name.contains(&b'/') || at > 0 && block.name(at - 1) >= name {
                return Err(fault());
            }
        }
        Ok(block)
    }

    /// Returns start and end of a name.
    fn span(&self, at: usize) -> (usize, usize) {
        let get = Get(&self.bytes);
        let start = usize::from(get.u16(at * ENTRY + 8));
        if at + 1 < self.count {
            return (start, get.u16((at + 1) * ENTRY + 8).into());
        }
        // The last name ends with the block, or with a NUL.
        let rest = self.bytes.get(start..).unwrap_or_default();
        (start, start + rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len()))
    }

    fn name(&self, at: usize) -> &[u8] {
        let (start, end) = self.span(at);
        &self.bytes[start..end]
    }

    fn entry(&self, at: usize) -> io::Result<(u64, FileType)> {
        let get = Get(&self.bytes);
        let file_type = type_of_entry(self.bytes[at * ENTRY + 10]);
        Ok((
            get.u64(at * ENTRY),
            file_type.ok_or_else(|| corrupt("the type of a directory entry is unknown"))?,
        ))
    }
}

/// Returns the number of blocks of a directory.
fn blocks(inode: &Inode) -> io::Result<u64> {
    match inode.file_type {
        FileType::Directory => Ok(inode.size.div_ceil(BLOCK as u64)),
        _ => Err(io::ErrorKind::NotADirectory.into()),
    }
}

pub(super) fn names(image: &Image, inode: &Inode) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut last: Vec<u8> = Vec::new();
    for number in 0..blocks(inode)? {
        let block = Block::read(image, inode, number)?;
        if block.name(0) <= last.as_slice() {
            return Err(corrupt("a directory is out of order"));
        }
        last = block.name(block.count - 1).to_vec();
        let plain = |name: &&[u8]| *name != b"." && *name != b"..";
        names.extend((0..block.count).map(|at| block.name(at)).filter(plain).map(<[u8]>::to_vec));
    }
    Ok(names)
}

/// Returns node number and type of the entry `name`, which must not be `.` or `..`.
pub(super) fn find(image: &Image, inode: &Inode, name: &[u8]) -> io::Result<Option<(u64, FileType)>> {
    let blocks = blocks(inode)?;
    if name == b"." || name == b".." {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Find the last block whose first name is not greater.
    let (mut low, mut high) = (0, blocks);
    let mut block = None;
    while low < high {
        let middle = low + (high - low) / 2;
        let candidate = Block::read(image, inode, middle)?;
        if candidate.name(0) <= name {
            low = middle + 1;
            block = Some(candidate);
        } else {
            high = middle;
        }
    }
    let Some(block) = block else { return Ok(None) };
    let (mut low, mut high) = (0, block.count);
    while low < high {
        let middle = low + (high - low) / 2;
        match block.name(middle).cmp(name) {
            std::cmp::Ordering::Equal => return block.entry(middle).map(Some),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    Ok(None)
}
