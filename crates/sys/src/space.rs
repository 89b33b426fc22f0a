//! Space on a file system, and its allocation to files.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs;
use nix::sys::statvfs::fstatvfs;

use super::dir::Dir;
use super::walk::{Visitor, walk};

/// Properties of a file system that affect space accounting.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Allocation unit of files, in bytes.
    pub block: u64,
    /// `true` for XFS, which gives a growing file more blocks than it needs unless they are preallocated.
    pub is_xfs: bool,
}

impl FileSystem {
    /// Reads the properties of the file system that contains an open inode.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let facts = statfs::fstatfs(fd)?;
        let block = u64::try_from(facts.block_size()).unwrap_or(4096).clamp(512, 1 << 20);
        Ok(FileSystem { block, is_xfs: facts.filesystem_type() == statfs::XFS_SUPER_MAGIC })
    }

    /// Rounds `bytes` up to whole blocks.
    pub fn round_up(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block).saturating_mul(self.block)
    }
}

/// Returns the free bytes of the file system of `dir` for an unprivileged process (statvfs(3), `f_bavail`).
///
/// # Errors
/// Those of fstatvfs(3).
pub fn free(dir: &Dir) -> io::Result<u64> {
    let facts = fstatvfs(dir)?;
    Ok(facts.blocks_available() * facts.fragment_size())
}

/// Returns the total bytes of the file system of `dir` (statvfs(3), `f_blocks`).
///
/// # Errors
/// Those of fstatvfs(3).
pub fn total(dir: &Dir) -> io::Result<u64> {
    let facts = fstatvfs(dir)?;
    Ok(facts.blocks() * facts.fragment_size())
}

/// Total and free space of a file system for an unprivileged process (statvfs(3)).
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Total size, in bytes.
    pub size: u64,
    /// Free space, in bytes.
    pub free: u64,
    /// Total number of inodes; 0 if the file system does not count them.
    pub inodes: u64,
    /// Number of free inodes.
    pub free_inodes: u64,
}

/// Returns the total and free space of the file system of `dir`.
///
/// # Errors
/// Those of fstatvfs(3).
pub fn usage(dir: &Dir) -> io::Result<Usage> {
    let facts = fstatvfs(dir)?;
    let unit = facts.fragment_size();
    Ok(Usage {
        size: facts.blocks() * unit,
        free: facts.blocks_available() * unit,
        inodes: facts.files(),
        free_inodes: facts.files_available(),
    })
}

/// Allocates `len` bytes of a file at `offset` without changing its size (fallocate(2),
/// `FALLOC_FL_KEEP_SIZE`). Does nothing if the file system does not support it.
///
/// # Errors
/// Those of fallocate(2); `EFBIG` if the range is too large.
pub fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Errno::EFBIG.into());
    };
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Releases the blocks of a range of a file without changing its size (fallocate(2), `FALLOC_FL_PUNCH_HOLE`).
/// Returns `false` if the file system does not support it.
///
/// # Errors
/// Those of fallocate(2); `EFBIG` if the range is too large.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Errno::EFBIG.into());
    };
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    match fallocate(file, flags, offset, len) {
        Ok(()) => Ok(true),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Extends an empty file to `len` bytes and allocates all of them (fallocate(2)). Returns `false` if the file
/// system does not support it.
///
/// # Errors
/// Those of fallocate(2); `EFBIG` if `len` is too large.
pub fn reserve(file: &File, len: u64) -> io::Result<bool> {
    let len = i64::try_from(len).map_err(|_| Errno::EFBIG)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// Shares the blocks of `from` with the empty file `to` (ioctl_ficlone(2)). Returns `false` if the file
/// system does not support it.
///
/// # Errors
/// Those of ioctl_ficlone(2).
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Copies the content of `from` to the empty file `to`. Holes stay holes (lseek(2), `SEEK_DATA`), so the copy
/// occupies no more space than the original.
///
/// # Errors
/// Those of lseek(2), read(2) and write(2).
pub fn copy_data(mut from: &File, mut to: &File) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    // Set the size first, because XFS gives a growing file more blocks than it needs.
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            other => other?,
        };
        at = seek(from, SeekFrom::Hole(start))?;
        seek(from, SeekFrom::Start(start))?;
        seek(to, SeekFrom::Start(start))?;
        io::copy(&mut io::Read::take(&mut from, at - start), &mut to)?;
    }
}

/// Returns the next range of a file at or after `at` that is not a hole (lseek(2), `SEEK_DATA`); `None` if
/// only a hole follows.
///
/// # Errors
/// Those of lseek(2).
pub fn next_data(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    match seek(file, SeekFrom::Data(at)) {
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Ok(start) => Ok(Some(start..seek(file, SeekFrom::Hole(start))?)),
        Err(e) => Err(e.into()),
    }
}

/// Returns the bytes that the tree at `dir` occupies, as `du -s` counts them: each inode once, including the
/// directory itself.
///
/// # Errors
/// Those of reading the tree.
pub fn occupied(dir: &Dir) -> io::Result<u64> {
    let mut usage = Occupied::default();
    walk(dir.try_clone()?, &mut usage)?;
    Ok(usage.total)
}

#[derive(Default)]
struct Occupied {
    total: u64,
    /// Inodes with several names that were already counted.
    seen: HashSet<(u64, u64)>,
}

impl Visitor for Occupied {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, _: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.total += dir.stat_self()?.allocated;
        let mut directories = Vec::new();
        for name in dir.names()? {
            match dir.try_stat(&name)? {
                Some(stat) if stat.is_dir() => directories.push(name),
                Some(stat) if stat.links == 1 || self.seen.insert(stat.identity) => {
                    self.total += stat.allocated
                }
                _ => {}
            }
        }
        Ok(directories)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}
