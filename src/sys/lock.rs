//! A lock that the kernel drops when its holder dies (flock(2)).

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::Mode;

use super::dir::Dir;

/// An exclusive lock, held until dropped. The file is never removed: who removed it could let two holders in.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock on the file `name`, creating it; nothing where another process holds it.
    pub fn try_exclusive(dir: &Dir, name: &[u8]) -> io::Result<Option<Self>> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Lock { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(e.into()),
        }
    }
}
