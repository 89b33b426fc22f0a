//! Files without a name (open(2), `O_TMPFILE`). A process that dies before it links one leaves nothing
//! behind.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd;

use super::dir::Dir;

/// Creates an unnamed file on the file system of `dir`, for reading and writing. Returns `None` if the file
/// system does not support this. `mode` is subject to the umask.
///
/// # Errors
/// Those of open(2).
pub fn create(dir: &Dir, mode: u32) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
    match fcntl::openat(dir, ".", flags, Mode::from_bits_truncate(mode)) {
        Ok(file) => Ok(Some(File::from(file))),
        // Kernels and file systems without `O_TMPFILE` treat the call as opening a directory.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Creates a private file in the directory for temporary files.
///
/// # Errors
/// Those of open(2) and unlink(2).
pub fn temporary() -> io::Result<File> {
    let path = std::env::temp_dir();
    let dir = Dir::open(&path)?;
    if let Some(file) = create(&dir, 0o600)? {
        return Ok(file);
    }
    let name = format!("larder-{}-{}", std::process::id(), uuid::Uuid::new_v4());
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let file = options.open(path.join(&name))?;
    dir.unlink(name.as_bytes())?;
    Ok(file)
}

/// Reopens the file read-only, so that a process that gets this descriptor cannot change the content.
///
/// # Errors
/// Those of open(2).
pub fn read_only(file: &File) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Links the file as `name` in `dir`, where it was created. The name must not exist.
///
/// # Errors
/// Those of linkat(2).
pub fn link(file: &File, dir: &Dir, name: &[u8]) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(unistd::linkat(AT_FDCWD, path.as_bytes(), dir, name, AtFlags::AT_SYMLINK_FOLLOW)?)
}
