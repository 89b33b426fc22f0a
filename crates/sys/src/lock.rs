//! File locks that the kernel releases when the holder dies (flock(2)).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use super::dir::{Dir, stat_fd};
use super::stat::FileType;

/// An exclusive or shared lock on a file, held until dropped. The file is never deleted: deleting it would
/// allow two holders at once.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

impl Lock {
    /// Locks an open file exclusively. Returns `None` if another process holds the lock. The lock belongs to
    /// the open file description: a program or loop device that gets a copy of the descriptor also holds it.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn try_exclusive_on(file: File) -> io::Result<Option<Self>> {
        Ok(try_flock(file, FlockArg::LockExclusiveNonblock)?.map(|file| Lock { file }))
    }

    /// Locks an open file together with other shared holders. Returns `None` if another process holds it
    /// exclusively.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn try_shared_on(file: File) -> io::Result<Option<Self>> {
        Ok(try_flock(file, FlockArg::LockSharedNonblock)?.map(|file| Lock { file }))
    }

    /// Returns the locked file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Locks the file `name` exclusively, and creates it if missing. Returns `None` if another process holds
    /// the lock.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn try_exclusive(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        Ok(try_flock(file, FlockArg::LockExclusiveNonblock)?.map(|file| Lock { file }))
    }

    /// Locks the file `name` together with other shared holders. Returns `None` if another process holds it
    /// exclusively. The file must exist and is opened read-only.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn try_shared(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let file = dir.open_file(name)?;
        Ok(try_flock(file, FlockArg::LockSharedNonblock)?.map(|file| Lock { file }))
    }
}

/// An exclusive lock on a directory itself, held until dropped.
#[derive(Debug)]
pub struct DirLock {
    _dir: Flock<OwnedFd>,
}

impl DirLock {
    /// Locks the directory. Returns `None` if it is already locked.
    ///
    /// # Errors
    /// Those of dup(2) and flock(2).
    pub fn try_exclusive(dir: &Dir) -> io::Result<Option<Self>> {
        match Flock::lock(dir.descriptor()?, FlockArg::LockExclusiveNonblock) {
            Ok(dir) => Ok(Some(DirLock { _dir: dir })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(e.into()),
        }
    }
}

/// A small file that only the holder of its lock reads, writes in place, and deletes.
#[derive(Debug)]
pub struct LockedFile {
    file: Flock<File>,
}

impl LockedFile {
    /// Locks the regular file `name`, and creates it if missing. Returns `None` if another process holds the
    /// lock, or if the file was deleted while it was being locked.
    ///
    /// # Errors
    /// Those of open(2), fstat(2) and flock(2); `EINVAL` if it is not a regular file.
    pub fn try_exclusive(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        let opened = stat_fd(&file)?;
        if opened.file_type != FileType::Regular {
            return Err(Errno::EINVAL.into());
        }
        let Some(file) = try_flock(file, FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        let named = dir.try_stat(name)?;
        let same = named.is_some_and(|named| named.identity == opened.identity);
        Ok(same.then_some(LockedFile { file }))
    }

    /// Reads the content of at most `limit` bytes.
    ///
    /// # Errors
    /// Those of read(2); `EFBIG` if the file is longer than `limit`.
    pub fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file: &File = &self.file;
        io::Seek::rewind(&mut file)?;
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(Errno::EFBIG.into());
        }
        Ok(bytes)
    }

    /// Replaces the content with `bytes` in one pwrite(2). A kill cannot leave partial content if the old
    /// content has the same length.
    ///
    /// # Errors
    /// Those of pwrite(2) and ftruncate(2); `ENOSPC` if not all bytes were written.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let len = self.file.write_at(bytes, 0)?;
        if len < bytes.len() {
            return Err(Errno::ENOSPC.into());
        }
        self.file.set_len(bytes.len() as u64)
    }

    /// Deletes this file, which has the name `name` in `dir`.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn remove(self, dir: &Dir, name: &[u8]) -> io::Result<()> {
        dir.unlink(name)
    }
}

fn try_flock(file: File, operation: FlockArg) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(file, operation) {
        Ok(file) => Ok(Some(file)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}
