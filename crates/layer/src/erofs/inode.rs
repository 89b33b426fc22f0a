//! What is remembered of an inode until the end.

use std::collections::BTreeMap;

use super::format::{file_type, type_bits};
use super::xattrs::SetId;
use larder_sys::{FileType, Timestamp};

/// An inode of an image that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) mtime: Timestamp,
    pub(super) size: u64,
    pub(super) content: Content,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Names; of a directory two and one for each directory in it. Without any it is not written.
    pub(super) links: u32,
    pub(super) xattrs: SetId,
    /// Where it lies among the inodes, in slots. Known at the end.
    pub(super) slot: u32,
    /// With the type.
    pub(super) mode: u16,
}

/// What belongs to one type of inode.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// Fifos, sockets.
    None,
    /// Device number.
    Device(u32),
    /// Whole blocks, and where the bytes lie that are left; none are left where there is no length.
    Blocks { first: u32, tail: u16, tail_at: u64 },
    /// Chunks of 2^`bits` blocks, from `first` on; `runs` runs of them are described at `runs_at` of the spill.
    Chunks { first: u32, runs: u32, runs_at: u64, bits: u8 },
    /// Index among the directories.
    Directory(u32),
}

impl Inode {
    pub(super) fn file_type(&self) -> FileType {
        file_type(self.mode)
    }

    pub(super) fn is_live(&self) -> bool {
        self.links > 0
    }

    /// Type and permissions; symbolic links have the permissions that Linux shows of them.
    pub(super) fn set_mode(&mut self, file_type: FileType, mode: u32) {
        let mode = if file_type == FileType::Symlink { 0o777 } else { mode & 0o7777 };
        let [low, high, ..] = mode.to_le_bytes();
        self.mode = type_bits(file_type) | u16::from_le_bytes([low, high]);
    }
}

/// The names in a directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: InodeId,
    pub(super) entries: BTreeMap<Box<[u8]>, InodeId>,
    /// Where its blocks lie, known at the end.
    pub(super) place: Place,
}

/// Where the blocks of a directory lie.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// First block, counted from the first of all directories.
    pub(super) first: u32,
    /// Blocks outside of the inode.
    pub(super) blocks: u32,
    /// Bytes behind the inode.
    pub(super) tail: usize,
}
