//! A lock that the kernel drops when its holder dies (flock(2)).

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use super::dir::{Dir, stat_fd};
use super::stat::FileType;

/// A lock, held until dropped. The file is never removed: who removed it could let two holders in.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

impl Lock {
    /// Takes the lock on an open file; nothing where another process holds it. It is the descriptor's: whoever is given a
    /// copy of it, as a program or a loop device, holds it too.
    pub fn try_exclusive_on(file: File) -> io::Result<Option<Self>> {
        Ok(take(file, FlockArg::LockExclusiveNonblock)?.map(|file| Lock { file }))
    }

    /// The same together with others who share it; nothing where somebody holds it alone.
    pub fn try_shared_on(file: File) -> io::Result<Option<Self>> {
        Ok(take(file, FlockArg::LockSharedNonblock)?.map(|file| Lock { file }))
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Takes the lock on the file `name`, creating it; nothing where another process holds it.
    pub fn try_exclusive(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        Ok(take(file, FlockArg::LockExclusiveNonblock)?.map(|file| Lock { file }))
    }

    /// Takes the lock on the file `name` together with others who share it; nothing where somebody holds it alone. The
    /// file must exist and is opened for reading only.
    pub fn try_shared(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let file = dir.open_file(name)?;
        Ok(take(file, FlockArg::LockSharedNonblock)?.map(|file| Lock { file }))
    }
}

/// A lock on a directory itself, held until dropped.
#[derive(Debug)]
pub struct DirLock {
    _dir: Flock<OwnedFd>,
}

impl DirLock {
    /// Takes the lock; nothing where somebody holds it.
    pub fn try_exclusive(dir: &Dir) -> io::Result<Option<Self>> {
        match Flock::lock(dir.descriptor()?, FlockArg::LockExclusiveNonblock) {
            Ok(dir) => Ok(Some(DirLock { _dir: dir })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(e.into()),
        }
    }
}

/// A small file that is read and written in place by who holds its lock, and that only he removes.
#[derive(Debug)]
pub struct LockedFile {
    file: Flock<File>,
}

impl LockedFile {
    /// Takes the lock on the regular file `name`, creating it; nothing where another process holds it, or where the file
    /// was removed while it was being locked.
    pub fn try_exclusive(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        let opened = stat_fd(&file)?;
        if opened.file_type != FileType::Regular {
            return Err(Errno::EINVAL.into());
        }
        let Some(file) = take(file, FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        let named = dir.try_stat(name)?;
        let same = named.is_some_and(|named| named.identity == opened.identity);
        Ok(same.then_some(LockedFile { file }))
    }

    /// The content; more than `limit` bytes is `EFBIG`.
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

    /// Makes `bytes` the content with one pwrite(2), which a kill does not cut where the old content is as long.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let len = self.file.write_at(bytes, 0)?;
        if len < bytes.len() {
            return Err(Errno::ENOSPC.into());
        }
        self.file.set_len(bytes.len() as u64)
    }

    /// Removes the file `name` in `dir`, which is this one.
    pub fn remove(self, dir: &Dir, name: &[u8]) -> io::Result<()> {
        dir.unlink(name)
    }
}

fn take(file: File, how: FlockArg) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(file, how) {
        Ok(file) => Ok(Some(file)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e.into()),
    }
}
