//! A directory held by its descriptor, and operations on the names in it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{self, AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag};
use nix::sys::stat::{self, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{self, Gid, Uid, UnlinkatFlags};

use super::stat::{FileType, Stat, Timestamp};

/// An open directory descriptor.
#[derive(Debug)]
pub struct Dir(OwnedFd);

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Dir {
    /// Opens the directory at `path` and follows symbolic links. Only for paths that the operator configured.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Dir(fcntl::open(path, DIRECTORY, Mode::empty())?))
    }

    /// Opens the directory `name` in this one.
    ///
    /// # Errors
    /// Those of open(2); `ENOTDIR` for a symbolic link.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Self> {
        Ok(Dir(fcntl::openat(&self.0, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?))
    }

    /// Opens the directory at `path` below this one.
    ///
    /// This takes one openat2(2). If a kernel or a seccomp filter does not support the call, or if the path
    /// is too long for it, the components are opened one by one. Links are never followed.
    ///
    /// # Errors
    /// Those of open(2); `ELOOP` or `ENOTDIR` if any component is a symbolic link.
    pub fn open_beneath(&self, path: &[u8]) -> io::Result<Self> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(DIRECTORY | OFlag::O_NOFOLLOW).resolve(resolve);
        match fcntl::openat2(&self.0, path, how) {
            Ok(dir) => Ok(Dir(dir)),
            Err(Errno::ENOSYS | Errno::EPERM | Errno::ENAMETOOLONG) => self.walk_beneath(path),
            Err(_) if path.is_empty() => self.try_clone(),
            Err(e) => Err(e.into()),
        }
    }

    fn walk_beneath(&self, path: &[u8]) -> io::Result<Self> {
        let mut dir = self.try_clone()?;
        for component in path.split(|b| *b == b'/').filter(|component| !component.is_empty()) {
            dir = dir.open_dir(component)?;
        }
        Ok(dir)
    }

    /// Duplicates the handle of the directory.
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Dir(self.0.try_clone()?))
    }

    /// Creates the file `name` and opens it for writing. It must not exist. `mode` is subject to the umask.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn create_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(fcntl::openat(&self.0, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Opens the regular file `name` read-only. Never follows a link, and never opens a device or blocks on
    /// one.
    ///
    /// # Errors
    /// Those of open(2); `EINVAL` if it is not a regular file.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        self.open_regular(name, OFlag::O_RDONLY)
    }

    /// Opens the regular file `name` for reading and writing, with the restrictions of [`Dir::open_file`].
    ///
    /// # Errors
    /// Those of [`Dir::open_file`].
    pub fn open_file_to_write(&self, name: &[u8]) -> io::Result<File> {
        self.open_regular(name, OFlag::O_RDWR)
    }

    fn open_regular(&self, name: &[u8], access: OFlag) -> io::Result<File> {
        let flags = access | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        if self.stat(name)?.file_type != FileType::Regular {
            return Err(Errno::EINVAL.into());
        }
        let file = File::from(fcntl::openat(&self.0, name, flags, Mode::empty())?);
        match Stat::from(stat::fstat(&file)?).file_type {
            FileType::Regular => Ok(file),
            _ => Err(Errno::EINVAL.into()),
        }
    }

    /// Opens the file `name` for appending, and creates it if missing.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn append_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(fcntl::openat(&self.0, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Reads the whole regular file `name` of at most `limit` bytes.
    ///
    /// # Errors
    /// Those of [`Dir::open_file`] and read(2); `EFBIG` if the file is longer than `limit`.
    pub fn read_file(&self, name: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        self.open_file(name)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(Errno::EFBIG.into());
        }
        Ok(bytes)
    }

    /// Creates the directory `name`. `mode` is subject to the umask.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn make_dir(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(stat::mkdirat(&self.0, name, Mode::from_bits_truncate(mode))?)
    }

    /// Opens the directory `name`, and creates it if missing.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2).
    pub fn ensure_dir(&self, name: &[u8], mode: u32) -> io::Result<Self> {
        match self.make_dir(name, mode) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => self.open_dir(name),
        }
    }

    /// Creates the symbolic link `name` with the text `target`.
    ///
    /// # Errors
    /// Those of symlink(2).
    pub fn symlink(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        Ok(unistd::symlinkat(target, &self.0, name)?)
    }

    /// Creates a device node or named pipe.
    ///
    /// # Errors
    /// Those of mknod(2); `EINVAL` for another file type.
    pub fn make_node(
        &self,
        name: &[u8],
        file_type: FileType,
        mode: u32,
        device: (u32, u32),
    ) -> io::Result<()> {
        let kind = match file_type {
            FileType::CharDevice => SFlag::S_IFCHR,
            FileType::BlockDevice => SFlag::S_IFBLK,
            FileType::Fifo => SFlag::S_IFIFO,
            _ => return Err(Errno::EINVAL.into()),
        };
        let device = stat::makedev(device.0.into(), device.1.into());
        Ok(stat::mknodat(&self.0, name, kind, Mode::from_bits_truncate(mode), device)?)
    }

    /// Creates an overlayfs whiteout: a character device 0:0, which needs no privilege (mknod(2), since Linux
    /// 5.8).
    ///
    /// # Errors
    /// Those of mknod(2).
    pub fn make_whiteout(&self, name: &[u8]) -> io::Result<()> {
        self.make_node(name, FileType::CharDevice, 0, (0, 0))
    }

    /// Creates the hard link `new_name` in `to` to the inode `name` in this directory. A symbolic link is not
    /// followed.
    ///
    /// # Errors
    /// Those of link(2).
    pub fn link(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> io::Result<()> {
        Ok(unistd::linkat(&self.0, name, &to.0, new_name, AtFlags::empty())?)
    }

    /// Renames `name` to `new_name` in `to`, and replaces an existing entry.
    ///
    /// # Errors
    /// Those of rename(2).
    pub fn rename(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> io::Result<()> {
        Ok(fcntl::renameat(&self.0, name, &to.0, new_name)?)
    }

    /// Renames `name` to `new_name` in `to`, which must not exist.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn rename_new(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> io::Result<()> {
        match fcntl::renameat2(&self.0, name, &to.0, new_name, RenameFlags::RENAME_NOREPLACE) {
            // Some file systems lack RENAME_NOREPLACE, but rename(2) onto a non-empty directory still fails.
            Err(Errno::EINVAL | Errno::ENOSYS) => self.rename(name, to, new_name),
            other => Ok(other?),
        }
    }

    /// Exchanges `name` and `other` atomically. Both must exist.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn exchange(&self, name: &[u8], other: &[u8]) -> io::Result<()> {
        Ok(fcntl::renameat2(&self.0, name, &self.0, other, RenameFlags::RENAME_EXCHANGE)?)
    }

    /// Removes a name that is not a directory.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&self, name: &[u8]) -> io::Result<()> {
        Ok(unistd::unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        Ok(unistd::unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Returns the attributes of `name`, without following a symbolic link.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        Ok(stat::fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
    }

    /// Returns the attributes of `name`, without following a symbolic link; `None` if the name does not
    /// exist.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn try_stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match self.stat(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Returns the attributes of the directory itself.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn stat_self(&self) -> io::Result<Stat> {
        Ok(stat::fstat(&self.0)?.into())
    }

    /// Returns the text of the symbolic link `name`.
    ///
    /// # Errors
    /// Those of readlink(2).
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(fcntl::readlinkat(&self.0, name)?.into_vec())
    }

    /// Returns the names in the directory without `.` and `..`, in the order of the file system.
    ///
    /// # Errors
    /// Those of open(2) and getdents(2).
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        // A new descriptor is opened, because duplicates share the offset of a directory stream.
        let mut stream = nix::dir::Dir::openat(&self.0, ".", DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        for entry in stream.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        Ok(names)
    }

    /// Sets the owner and group of `name`, without following a symbolic link.
    ///
    /// # Errors
    /// Those of fchownat(2).
    pub fn set_owner(&self, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(unistd::fchownat(&self.0, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Sets the mode (07777) of `name`. The caller must ensure that it is not a symbolic link: links have no
    /// mode, and fchmodat(2) would follow it.
    ///
    /// # Errors
    /// Those of fchmodat(2).
    pub fn set_mode(&self, name: &[u8], mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        Ok(stat::fchmodat(&self.0, name, mode, stat::FchmodatFlags::FollowSymlink)?)
    }

    /// Sets the access and modification times of `name`, without following a symbolic link.
    ///
    /// # Errors
    /// Those of utimensat(2).
    pub fn set_times(&self, name: &[u8], mtime: Timestamp) -> io::Result<()> {
        let time = time_spec(mtime);
        Ok(stat::utimensat(&self.0, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// Flushes the entries of the directory to disk.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn sync(&self) -> io::Result<()> {
        Ok(unistd::fsync(&self.0)?)
    }

    /// Flushes the whole file system of the directory (syncfs(2)).
    ///
    /// # Errors
    /// Those of syncfs(2): a write since the last call was lost. Do not retry, because a second call would
    /// hide the loss.
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(unistd::syncfs(&self.0)?)
    }

    /// Duplicates the descriptor of the directory, for locks.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Returns a path to `name` through `/proc/self/fd`, for calls that take no directory descriptor.
    pub(super) fn proc_path(&self, name: &[u8]) -> CString {
        let mut path = format!("/proc/self/fd/{}/", self.0.as_raw_fd()).into_bytes();
        // Names come from Larder or the kernel and contain no NUL. If one ever does, cut it instead of
        // panicking.
        path.extend(name.iter().copied().take_while(|b| *b != 0));
        CString::new(path).unwrap_or_default()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.0
    }
}

impl From<OwnedFd> for Dir {
    /// Wraps the descriptor, which must be a directory.
    fn from(fd: OwnedFd) -> Self {
        Dir(fd)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sets the owner and group of an open inode.
///
/// # Errors
/// Those of fchown(2).
pub fn set_owner(fd: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    Ok(unistd::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Creates the directory at `path` and its missing parents, each with exactly `mode` (07777), regardless of
/// the umask. Existing directories keep their modes. Symbolic links are followed, so use it only for paths
/// that the operator configured.
///
/// # Errors
/// Those of mkdir(2) and chmod(2), and `NotADirectory` if a component is not a directory.
pub fn create_all(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
        create_all(parent, mode)?;
    }
    match fs::DirBuilder::new().mode(mode & 0o700).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        // Another process created it first.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Describes why a file or directory of a volume could not be opened as expected: volumes contain no links or
/// special files in their structure. `None` for any other failure.
pub fn forgery(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error().map(Errno::from_raw)? {
        Errno::ELOOP => Some("is a symbolic link"),
        Errno::ENOTDIR => Some("is not a directory, or one of its parents is not"),
        Errno::EINVAL | Errno::EISDIR => Some("is not a regular file"),
        Errno::EFBIG => Some("is too large for its type"),
        _ => None,
    }
}

/// Sets the mode (07777) of an open inode.
///
/// # Errors
/// Those of fchmod(2).
pub fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(stat::fchmod(fd, Mode::from_bits_truncate(mode))?)
}

/// Sets the access and modification times of an open inode.
///
/// # Errors
/// Those of futimens(3).
pub fn set_times(fd: impl AsFd, mtime: Timestamp) -> io::Result<()> {
    let time = time_spec(mtime);
    Ok(stat::futimens(fd, &time, &time)?)
}

/// Returns the attributes of an open inode.
///
/// # Errors
/// Those of fstat(2).
pub fn stat_fd(fd: impl AsFd) -> io::Result<Stat> {
    Ok(stat::fstat(fd)?.into())
}

fn time_spec(time: Timestamp) -> TimeSpec {
    TimeSpec::new(time.sec, time.nsec.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_beneath_agree() {
        let top = std::env::temp_dir().join(format!("larder-beneath-{}", std::process::id()));
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", top.join("link")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        let dir = Dir::open(&top).unwrap();
        for path in ["", "a", "a/b", "link", "link/b", "file", "a/none", "none"] {
            let quick = dir.open_beneath(path.as_bytes()).and_then(|dir| dir.stat_self());
            let slow = dir.walk_beneath(path.as_bytes()).and_then(|dir| dir.stat_self());
            assert_eq!(quick.ok().map(|stat| stat.identity), slow.ok().map(|stat| stat.identity), "{path}");
        }
        std::fs::remove_dir_all(&top).unwrap();
    }
}
