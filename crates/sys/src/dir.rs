//! A directory held by its descriptor, and what can be done to the names in it.

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

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

const DIRECTORY: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Dir {
    /// Opens the directory at `path`, following symbolic links: for paths that the operator gave.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Dir(fcntl::open(path, DIRECTORY, Mode::empty())?))
    }

    /// Opens the directory `name` in this one; a symbolic link is `ENOTDIR`.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Self> {
        Ok(Dir(fcntl::openat(&self.0, name, DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?))
    }

    /// Opens the directory at `path` beneath this one; any symbolic link on the way is `ELOOP` or `ENOTDIR`.
    ///
    /// It takes one openat2(2). Where a kernel or a seccomp filter does not know that call, or the path is longer than it
    /// takes, the path is walked by components, none of them followed.
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

    /// A second handle of the same directory.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Dir(self.0.try_clone()?))
    }

    /// Creates and opens the file `name` for writing; it must not exist. `mode` is subject to the umask.
    pub fn create_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(fcntl::openat(&self.0, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Opens the regular file `name` for reading. Never follows a link, and never blocks on or touches a device.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        self.open_regular(name, OFlag::O_RDONLY)
    }

    /// Opens the regular file `name` for reading and writing, under the same rules.
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

    /// Opens or creates the file `name` for appending.
    pub fn append_file(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(fcntl::openat(&self.0, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Reads the regular file `name` whole; more than `limit` bytes is `EFBIG`.
    pub fn read_file(&self, name: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        self.open_file(name)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(Errno::EFBIG.into());
        }
        Ok(bytes)
    }

    /// Creates the directory `name`.
    pub fn make_dir(&self, name: &[u8], mode: u32) -> io::Result<()> {
        Ok(stat::mkdirat(&self.0, name, Mode::from_bits_truncate(mode))?)
    }

    /// Opens the directory `name`, creating it where it is absent.
    pub fn ensure_dir(&self, name: &[u8], mode: u32) -> io::Result<Self> {
        match self.make_dir(name, mode) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => self.open_dir(name),
        }
    }

    /// Creates the symbolic link `name` with text `target`.
    pub fn symlink(&self, target: &[u8], name: &[u8]) -> io::Result<()> {
        Ok(unistd::symlinkat(target, &self.0, name)?)
    }

    /// Creates a device node or named pipe.
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

    /// Creates an overlayfs whiteout: a character device 0:0, which needs no privilege (mknod(2), since Linux 5.8).
    pub fn make_whiteout(&self, name: &[u8]) -> io::Result<()> {
        self.make_node(name, FileType::CharDevice, 0, (0, 0))
    }

    /// Gives the inode `name` in this directory a second name in `to`; a symbolic link is linked itself.
    pub fn link(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> io::Result<()> {
        Ok(unistd::linkat(&self.0, name, &to.0, new_name, AtFlags::empty())?)
    }

    /// Moves `name` to `new_name` in `to`, replacing what is there.
    pub fn rename(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> io::Result<()> {
        Ok(fcntl::renameat(&self.0, name, &to.0, new_name)?)
    }

    /// Moves `name` to `new_name` in `to`, which must not exist.
    pub fn rename_new(&self, name: &[u8], to: &Dir, new_name: &[u8]) -> io::Result<()> {
        match fcntl::renameat2(&self.0, name, &to.0, new_name, RenameFlags::RENAME_NOREPLACE) {
            // Some file systems have no RENAME_NOREPLACE; rename(2) onto a non-empty directory fails all the same.
            Err(Errno::EINVAL | Errno::ENOSYS) => self.rename(name, to, new_name),
            other => Ok(other?),
        }
    }

    /// Has `name` and `other` change places in one step; both must exist.
    pub fn exchange(&self, name: &[u8], other: &[u8]) -> io::Result<()> {
        Ok(fcntl::renameat2(&self.0, name, &self.0, other, RenameFlags::RENAME_EXCHANGE)?)
    }

    /// Removes the name of anything but a directory.
    pub fn unlink(&self, name: &[u8]) -> io::Result<()> {
        Ok(unistd::unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir)?)
    }

    /// Removes an empty directory.
    pub fn remove_dir(&self, name: &[u8]) -> io::Result<()> {
        Ok(unistd::unlinkat(&self.0, name, UnlinkatFlags::RemoveDir)?)
    }

    /// Attributes of `name`, which is not followed.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        Ok(stat::fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.into())
    }

    /// Attributes of `name`, or nothing where the name does not exist.
    pub fn try_stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        match self.stat(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    /// Attributes of the directory itself.
    pub fn stat_self(&self) -> io::Result<Stat> {
        Ok(stat::fstat(&self.0)?.into())
    }

    /// The text of the symbolic link `name`.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(fcntl::readlinkat(&self.0, name)?.into_vec())
    }

    /// The names in the directory, `.` and `..` left out, in the order of the file system.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        // A descriptor of its own: the offset of a directory stream is shared between duplicates.
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

    /// Sets owner and group of `name`, which is not followed.
    pub fn set_owner(&self, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        Ok(unistd::fchownat(&self.0, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Sets the mode (07777) of `name`, which the caller knows to be no symbolic link: those have no mode, and
    /// fchmodat(2) would follow it.
    pub fn set_mode(&self, name: &[u8], mode: u32) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(mode);
        Ok(stat::fchmodat(&self.0, name, mode, stat::FchmodatFlags::FollowSymlink)?)
    }

    /// Sets access and modification time of `name`, which is not followed.
    pub fn set_times(&self, name: &[u8], mtime: Timestamp) -> io::Result<()> {
        let time = time_spec(mtime);
        Ok(stat::utimensat(&self.0, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// Flushes the directory's own entries to disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(unistd::fsync(&self.0)?)
    }

    /// Flushes the whole file system that holds the directory (syncfs(2)). An error means that some write since the
    /// last call was lost; calling again would hide it.
    pub fn sync_file_system(&self) -> io::Result<()> {
        Ok(unistd::syncfs(&self.0)?)
    }

    /// A descriptor of the directory, for locks.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// A path to `name` through `/proc/self/fd`, for calls that know no directory descriptors.
    pub(super) fn proc_path(&self, name: &[u8]) -> CString {
        let mut path = format!("/proc/self/fd/{}/", self.0.as_raw_fd()).into_bytes();
        // Names come from here or from the kernel and hold no NUL; cut rather than panic should one ever.
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
    /// The descriptor is one of a directory.
    fn from(fd: OwnedFd) -> Self {
        Dir(fd)
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Sets owner and group of an open inode.
pub fn set_owner(fd: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    Ok(unistd::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

/// Creates the directory at `path` and its missing parents, each with exactly `mode` (07777), whatever the umask. Directories
/// that exist keep their modes. For paths that the operator gave: symbolic links are followed.
///
/// # Errors
/// Those of mkdir(2) and chmod(2), and `NotADirectory` for a path that names something else.
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
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

/// Returns what is wrong with a name that could not be opened beneath a volume as the file or directory that it should be: a
/// volume of ours has no links and no special files in its structure. `None` for any other failure.
pub fn forgery(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error().map(Errno::from_raw)? {
        Errno::ELOOP => Some("is a symbolic link"),
        Errno::ENOTDIR => Some("is no directory, or below something that is none"),
        Errno::EINVAL | Errno::EISDIR => Some("is no regular file"),
        Errno::EFBIG => Some("is larger than any such file"),
        _ => None,
    }
}

/// Sets the mode (07777) of an open inode.
pub fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(stat::fchmod(fd, Mode::from_bits_truncate(mode))?)
}

/// Sets access and modification time of an open inode.
pub fn set_times(fd: impl AsFd, mtime: Timestamp) -> io::Result<()> {
    let time = time_spec(mtime);
    Ok(stat::futimens(fd, &time, &time)?)
}

/// Attributes of an open inode.
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
