//! A streaming reader of layer tars, written for hostile input.
//!
//! It reads what Go's archive/tar reads, in the way it reads it, because podman, CRI-O and containerd read layers with
//! that; where Go is silent about nonsense (owners that wrap, orphaned extended headers, unknown sparse formats) the
//! member is refused by name. Every byte that comes in is handed to a [`Record`] too, so that the tar can be built
//! again from the files and what the record kept.
//!
//! | file | what it knows |
//! |---|---|
//! | `block` | the 512-byte header: checksum, formats, fields |
//! | `number` | octal, base-256 and decimal numbers, time stamps |
//! | `pax` | the records of extended headers |
//! | `sparse` | maps of sparse files: old GNU and PAX 0.0, 0.1, 1.0 |
//! | `reader` | the order of blocks in the stream |

mod block;
mod error;
mod number;
mod pax;
mod reader;
mod sparse;

use std::io;

pub use self::block::Typeflag;
pub use self::error::{Error, Fault, Place};
pub use self::reader::Reader;
pub use self::sparse::Region;

/// Size of a block: headers are one, data is padded to a multiple.
pub const BLOCK: usize = 512;

/// What keeps a record of the stream while it is read; [`TarSplit`](crate::tar_split::TarSplit) or `()`.
pub trait Record {
    /// Bytes of the stream that are not the content of a plain file: headers, padding, maps, inline data, the end.
    ///
    /// # Errors
    /// Whatever keeps the record from being written.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// The raw bytes so far end with the header of a member.
    ///
    /// # Errors
    /// As [`raw`](Record::raw).
    fn header(&mut self) -> io::Result<()>;

    /// Bytes of a plain file, which the caller keeps.
    fn payload(&mut self, bytes: &[u8]);

    /// The payload since the last file is the whole content, `size` bytes, of the file `name`.
    ///
    /// # Errors
    /// As [`raw`](Record::raw).
    fn file(&mut self, name: &[u8], size: u64) -> io::Result<()>;
}

/// Keeps nothing.
impl Record for () {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn header(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn payload(&mut self, _: &[u8]) {}

    fn file(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A point in time since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub sec: i64,
    /// Nanoseconds after `sec`, below 10^9.
    pub nsec: u32,
}

/// One member of a tar with everything that its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Path as the tar gives it: any bytes but NUL, not cleaned, possibly empty.
    pub path: Vec<u8>,
    /// Type, with what belongs to that type alone.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Numeric owner; never 2^32 - 1, which chown(2) takes for "leave as it is".
    pub uid: u32,
    /// Numeric group; never 2^32 - 1.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Logical size, bytes: of a sparse file with its holes, 0 for all but files.
    pub size: u64,
    /// Extended attributes in the order of their names, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Number of the member in the tar, from 0.
    pub index: u64,
}

/// Type of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file (also `7`, contiguous).
    File,
    /// A regular file with holes.
    Sparse {
        /// Where data lies: ordered, apart from each other, within the size.
        map: Vec<Region>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// What it points to, any bytes but NUL.
        target: Vec<u8>,
    },
    /// Another name of an earlier member.
    HardLink {
        /// Path of that member as the tar gives it.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A piece of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Where in the file it belongs, bytes; jumps over holes.
    pub offset: u64,
    /// The content, never empty.
    pub bytes: &'a [u8],
}

#[cfg(test)]
mod tests;
