//! Inodes and directories kept in memory until the image is finished.

use std::collections::BTreeMap;

use super::format::{file_type, type_bits};
use super::xattrs::SetId;
use larder_sys::{FileType, Timestamp};

/// The ID of an inode in an image that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub(super) u32);

impl InodeId {
    /// ID of the root directory.
    pub const ROOT: InodeId = InodeId(0);

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// An inode in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) mtime: Timestamp,
    pub(super) size: u64,
    pub(super) content: Content,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Number of names; for a directory two plus one per subdirectory. An inode with 0 is not written.
    pub(super) links: u32,
    pub(super) xattrs: SetId,
    /// Offset among the inodes, in slots. Decided when the image is finished.
    pub(super) slot: u32,
    /// Permission and type bits.
    pub(super) mode: u16,
}

/// The data specific to one type of inode.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// No data, for pipes and sockets.
    None,
    /// Device number of a device node.
    Device(u32),
    /// Whole blocks from `first` on, and the offset of the tail in the spill. A `tail` length of 0 means no
    /// tail.
    Blocks { first: u32, tail: u16, tail_at: u64 },
    /// Chunks of 2^`bits` blocks, from `first` on. `runs` run records are stored at `runs_at` of the spill.
    Chunks { first: u32, runs: u32, runs_at: u64, bits: u8 },
    /// Index in the list of directories.
    Directory(u32),
}

impl Inode {
    pub(super) fn file_type(&self) -> FileType {
        file_type(self.mode)
    }

    pub(super) fn is_live(&self) -> bool {
        self.links > 0
    }

    /// Sets type and permissions. Symbolic links get the permissions that Linux shows for them.
    pub(super) fn set_mode(&mut self, file_type: FileType, mode: u32) {
        let mode = if file_type == FileType::Symlink { 0o777 } else { mode & 0o7777 };
        let [low, high, ..] = mode.to_le_bytes();
        self.mode = type_bits(file_type) | u16::from_le_bytes([low, high]);
    }
}

/// The entries of a directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) parent: InodeId,
    pub(super) entries: BTreeMap<Box<[u8]>, InodeId>,
    /// Position of its blocks, decided when the image is finished.
    pub(super) position: DirectoryBlocks,
}

/// The position of the blocks of a directory.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DirectoryBlocks {
    /// First block, counted from the first block of all directories.
    pub(super) first: u32,
    /// Number of blocks outside of the inode.
    pub(super) blocks: u32,
    /// Number of bytes after the inode.
    pub(super) tail: usize,
}
