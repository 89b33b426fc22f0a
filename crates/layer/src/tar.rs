//! A streaming reader of layer tars, written for hostile input.
//!
//! It accepts what Go's archive/tar accepts, with the same result, because podman, CRI-O and containerd read
//! layers with that package. Where Go silently accepts nonsense (owner IDs that wrap, orphaned extended
//! headers, unknown sparse formats), this reader rejects the member with a specific error. Every input byte
//! is also passed to a [`Record`], so that the tar can be rebuilt from the files and the record.
//!
//! | file | content |
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
pub use self::error::{Error, Fault, Position};
pub use self::reader::Reader;
pub use self::sparse::Region;

/// Size of a block: headers are one, data is padded to a multiple.
pub const BLOCK: usize = 512;

/// A record of the stream, written while the stream is read: [`TarSplit`](crate::tar_split::TarSplit) or
/// `()`.
pub trait Record {
    /// Records bytes that are not the content of a plain file: headers, padding, maps, inline data, the end
    /// of the tar.
    ///
    /// # Errors
    /// The error that prevents writing the record.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Records that the raw bytes so far end with the header of a member.
    ///
    /// # Errors
    /// The same errors as [`raw`](Record::raw).
    fn header(&mut self) -> io::Result<()>;

    /// Records bytes of a plain file, which the caller stores.
    fn payload(&mut self, bytes: &[u8]);

    /// Records that the payload since the previous file is the whole content, `size` bytes, of the file
    /// `name`.
    ///
    /// # Errors
    /// The same errors as [`raw`](Record::raw).
    fn file(&mut self, name: &[u8], size: u64) -> io::Result<()>;
}

/// A record that stores nothing.
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

/// One member of a tar, with everything that its headers contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Path as in the tar: any bytes except NUL, not cleaned, possibly empty.
    pub path: Vec<u8>,
    /// Type, with the fields that only this type has.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Numeric owner; never 2^32 - 1, which chown(2) interprets as "leave unchanged".
    pub uid: u32,
    /// Numeric group; never 2^32 - 1.
    pub gid: u32,
    /// Modification time, with nanoseconds.
    pub mtime: Timestamp,
    /// Logical size, bytes: for a sparse file including its holes, 0 for all other types.
    pub size: u64,
    /// Extended attributes in the order of their names; names are unique.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Index of the member in the tar, from 0.
    pub index: u64,
}

/// The type of a tar member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file (also `7`, contiguous).
    File,
    /// A regular file with holes.
    Sparse {
        /// Regions that contain data: ordered, not overlapping, within the size.
        map: Vec<Region>,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Target of the link; any bytes except NUL.
        target: Vec<u8>,
    },
    /// Another name of an earlier member.
    HardLink {
        /// Path of that member as in the tar.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number of the device.
        major: u32,
        /// Minor number of the device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number of the device.
        major: u32,
        /// Minor number of the device.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A piece of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// Offset in the file, bytes. Holes are skipped.
    pub offset: u64,
    /// The content, never empty.
    pub bytes: &'a [u8],
}

#[cfg(test)]
mod tests;
