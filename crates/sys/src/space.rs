//! Space on a file system, and keeping it for a file.

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

/// What matters of a file system to somebody who counts bytes on it.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// Unit in which files occupy space, bytes.
    pub block: u64,
    /// Whether it is xfs, which gives a growing file more blocks than it needs unless they are asked for beforehand.
    pub is_xfs: bool,
}

impl FileSystem {
    /// Asks the file system that holds an open inode.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let facts = statfs::fstatfs(fd)?;
        let block = u64::try_from(facts.block_size()).unwrap_or(4096).clamp(512, 1 << 20);
        Ok(FileSystem { block, is_xfs: facts.filesystem_type() == statfs::XFS_SUPER_MAGIC })
    }

    /// `bytes` rounded up to whole blocks.
    pub fn round_up(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.block).saturating_mul(self.block)
    }
}

/// Bytes that the file system that holds `dir` has left for a process without privileges (statvfs(3), `f_bavail`).
pub fn free(dir: &Dir) -> io::Result<u64> {
    let facts = fstatvfs(dir)?;
    Ok(facts.blocks_available() * facts.fragment_size())
}

/// Bytes that the file system that holds `dir` has in all (statvfs(3), `f_blocks`).
pub fn total(dir: &Dir) -> io::Result<u64> {
    let facts = fstatvfs(dir)?;
    Ok(facts.blocks() * facts.fragment_size())
}

/// What a file system has and has left, for a process without privileges (statvfs(3)).
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// Bytes in all.
    pub size: u64,
    /// Bytes left.
    pub free: u64,
    /// Inodes in all; 0 where they are not counted.
    pub inodes: u64,
    /// Inodes left.
    pub free_inodes: u64,
}

/// Asks the file system that holds `dir`.
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

/// Allocates `len` bytes of a file from `offset` on without changing its size (fallocate(2), `FALLOC_FL_KEEP_SIZE`); file
/// systems that cannot are left as they are.
pub fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return Err(Errno::EFBIG.into());
    };
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Gives the blocks of a part of a file back without changing its size (fallocate(2), `FALLOC_FL_PUNCH_HOLE`); false where
/// the file system cannot.
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

/// Makes an empty file `len` bytes large and keeps all of them for it (fallocate(2)); false where the file system cannot.
pub fn reserve(file: &File, len: u64) -> io::Result<bool> {
    let len = i64::try_from(len).map_err(|_| Errno::EFBIG)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// Shares the blocks of `from` with the empty file `to` (ioctl_ficlone(2)); false where the file system cannot.
pub fn reflink(from: &File, to: &File) -> io::Result<bool> {
    use rustix::io::Errno;
    match rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Copies what `from` holds to the empty file `to`; holes stay holes (lseek(2), `SEEK_DATA`), so that the copy occupies no
/// more than the original.
pub fn copy_data(mut from: &File, mut to: &File) -> io::Result<()> {
    use rustix::fs::{SeekFrom, seek};
    // The size comes first: xfs gives a file that grows more blocks than it needs.
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

/// The next stretch of a file from `at` on that is no hole (lseek(2), `SEEK_DATA`); none where only a hole follows.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    match seek(file, SeekFrom::Data(at)) {
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Ok(start) => Ok(Some(start..seek(file, SeekFrom::Hole(start))?)),
        Err(e) => Err(e.into()),
    }
}

/// Bytes that the tree at `dir` occupies, as `du -s` counts them: each inode once. The directory itself counts too.
pub fn occupied(dir: &Dir) -> io::Result<u64> {
    let mut usage = Occupied::default();
    walk(dir.try_clone()?, &mut usage)?;
    Ok(usage.total)
}

#[derive(Default)]
struct Occupied {
    total: u64,
    /// Inodes with several names that were counted.
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
