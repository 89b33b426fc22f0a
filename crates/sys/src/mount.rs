//! Mounts by descriptor (fsopen(2), fsmount(2), move_mount(2); Linux 5.2): what is mounted is mounted over the very
//! directory that was opened, and a mount that was attached nowhere goes with its descriptor.

pub mod attributes;
mod identity;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

pub use identity::id;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::dir::Dir;
use super::selinux;

/// How an ext4 is mounted. Devices and setuid bits on it mean nothing, and nothing on it is executed.
#[derive(Clone, Copy, Debug)]
pub enum Ext4 {
    /// To be filled.
    Filled,
    /// To be read as it is: not even a journal is replayed.
    Read,
}

/// A mount failed.
#[derive(Debug, thiserror::Error)]
#[error("{source}{}", beside(said))]
pub struct MountError {
    /// What the call answered.
    pub source: io::Error,
    /// What the file system said beside it; empty where it said nothing.
    pub said: String,
}

fn beside(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(" ({said})") }
}

/// A mounted file system. As long as it is attached nowhere, it is there through this value only and goes with it.
#[derive(Debug)]
pub struct Mount(OwnedFd);

impl Mount {
    /// Mounts the ext4 on `device`, nowhere.
    pub fn ext4(device: &Path, how: Ext4) -> Result<Self, MountError> {
        let flags: &[&str] = match how {
            // Inode tables are zeroed by nobody, neither beside the filling nor on the nodes, and holes would give the
            // space back that was reserved for the disk.
            Ext4::Filled => &["noinit_itable", "nodiscard", "errors=remount-ro"],
            // Whatever its superblock says, an inconsistency must not stop the machine.
            Ext4::Read => &["ro", "noload", "errors=remount-ro"],
        };
        Mount::new("ext4", device, flags, matches!(how, Ext4::Read))
    }

    /// Mounts the EROFS on `device`, nowhere.
    pub fn erofs(device: &Path) -> Result<Self, MountError> {
        Mount::new("erofs", device, &["ro"], true)
    }

    /// Mounts the EROFS that the file at `path` is, nowhere; nothing where this kernel wants a device (before Linux 6.12, or
    /// without `CONFIG_EROFS_FS_BACKED_BY_FILE`).
    pub fn erofs_file(path: &Path) -> Result<Option<Self>, MountError> {
        match Mount::erofs(path) {
            Err(e) if e.source.raw_os_error() == Some(Errno::ENOTBLK as i32) => Ok(None),
            other => other.map(Some),
        }
    }

    /// The file system that is mounted at `path`, once more and nowhere.
    pub fn clone_of(path: &Path) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(Mount(open_tree(CWD, path, flags)?))
    }

    /// The directory `dir` as the top of a mount of its own, nowhere. This thread must have opened it in its own namespace.
    pub fn of_dir(dir: &Dir) -> io::Result<Self> {
        Mount::of(dir)
    }

    /// The file `file` as a mount of its own, nowhere. This thread must have opened it in its own namespace.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Mount::of(file)
    }

    fn of(inode: impl AsFd) -> io::Result<Self> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Mount(open_tree(inode, "", flags)?))
    }

    /// What is mounted at `path` and on directories in it, once more and nowhere: attached, it is there whole at once.
    pub fn clone_of_tree(path: &Path) -> io::Result<Self> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        Ok(Mount(open_tree(CWD, path, flags)?))
    }

    fn new(file_system: &str, device: &Path, flags: &[&str], read_only: bool) -> Result<Self, MountError> {
        let plain = |source: rustix::io::Errno| MountError { source: source.into(), said: String::new() };
        let context = fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain)?;
        let made = fsconfig_set_string(&context, "source", device).and_then(|()| {
            flags.iter().try_for_each(|flag| match flag.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value),
                None => fsconfig_set_flag(&context, *flag),
            })?;
            if read_only && selinux::is_enforcing() {
                fsconfig_set_string(&context, "context", selinux::LAYERS)?;
            }
            fsconfig_create(&context)
        });
        made.map_err(|e| MountError { source: e.into(), said: messages(&context) })?;
        let mut attributes = READ | MountAttrFlags::MOUNT_ATTR_NOATIME;
        if read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        Ok(Mount(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(plain)?))
    }

    /// Its ID ([`id`]), which stays when it is attached.
    pub fn id(&self) -> io::Result<u64> {
        id(&self.0)
    }

    /// The directory at the top of it.
    pub fn root(&self) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir::from(rustix::fs::openat(&self.0, ".", flags, Mode::empty())?))
    }

    /// A path to it for this process, as long as the value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Attaches it over the file or directory at `over`: read-only, without devices, setuid bits and programs. It has these
    /// attributes before anybody can reach it.
    ///
    /// Only for a thread with a namespace of its own ([`private_namespace`]): before Linux 5.12 a mount takes its attributes when
    /// it is attached already, which only that thread sees.
    pub fn attach_read_only(self, over: &Path) -> io::Result<()> {
        let attributes = READ.union(MountAttrFlags::MOUNT_ATTR_RDONLY);
        let is_late = match attributes::add(&self.0, attributes, false) {
            Err(e) if e.raw_os_error() == Some(Errno::ENOSYS as i32) => true,
            set => set.map(|()| false)?,
        };
        move_mount(&self.0, "", CWD, over, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        if is_late {
            let flags = VIEW_FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            nix::mount::mount(None::<&str>, over, None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    }

    /// Attaches it over the directory `over`, from where [`unmount`] takes it.
    pub fn attach(self, over: &Dir) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.0, "", over, "", flags)?)
    }
}

/// Whether the kernel has the file system `name`, which it loads now where it is a module.
pub fn has_file_system(name: &str) -> io::Result<bool> {
    let is_listed = || -> io::Result<bool> {
        let list = fs::read_to_string("/proc/filesystems")?;
        Ok(list.lines().any(|line| line.split_whitespace().next_back() == Some(name)))
    };
    Ok(is_listed()? || (fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).is_ok() && is_listed()?))
}

/// What the kernel says of a mount that it refused: a letter for the level and a line for each message.
fn messages(context: &OwnedFd) -> String {
    let mut all: Vec<String> = Vec::new();
    let mut buffer = [0; 1024];
    // A bound, should a kernel answer the same for ever.
    while let (Ok(len @ 1..), true) = (rustix::io::read(context, &mut buffer), all.len() < 8) {
        let text = String::from_utf8_lossy(&buffer[..len]);
        let text = text.trim();
        all.push(text.get(2..).unwrap_or(text).to_owned());
    }
    all.join("; ")
}

/// Gives this thread, and those that it makes, a mount namespace of their own: what is mounted in it is seen by nobody else
/// and goes with the last of them.
pub fn private_namespace() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// Lets what is mounted below the directory `dir` from now on appear in the mount namespaces that children of this process make
/// (mount_namespaces(7), "SHARED SUBTREES"). To be called in a namespace of one's own.
///
/// # Errors
/// Those of mount(2).
pub fn share_below(dir: &Path) -> io::Result<()> {
    let none = None::<&str>;
    nix::mount::mount(Some(dir), dir, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    Ok(nix::mount::mount(none, dir, none, MsFlags::MS_SHARED, none)?)
}

/// Makes `dir` the working directory of this thread, which has one of its own since [`private_namespace`].
pub fn work_in(dir: &Path) -> io::Result<()> {
    Ok(nix::unistd::chdir(dir)?)
}

/// Mounts an empty file system in memory over `dir`, for nobody but this user.
pub fn memory(dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some("larder"), dir, Some("tmpfs"), flags, Some("mode=0700"))?)
}

/// Mounts an empty file system in memory over `dir`, on which device nodes count and that every user may enter. Only for a
/// thread with a namespace of its own ([`private_namespace`]).
pub fn memory_for_devices(dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some("larder"), dir, Some("tmpfs"), flags, Some("mode=0711"))?)
}

/// Mounts an empty file system in memory over `dir`, for everybody to read: see [`is_our_view`].
pub fn memory_for_all(dir: &Path) -> io::Result<()> {
    let mut options = "mode=0755".to_owned();
    if selinux::is_enforcing() {
        options += &format!(",context=\"{}\"", selinux::LAYERS);
    }
    Ok(nix::mount::mount(Some(VIEW_SOURCE), dir, Some("tmpfs"), VIEW_FLAGS, Some(options.as_str()))?)
}

/// Makes the file system that [`memory_for_all`] mounted over `dir` read-only.
pub fn memory_read_only(dir: &Path) -> io::Result<()> {
    let flags = VIEW_FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(nix::mount::mount(Some(VIEW_SOURCE), dir, None::<&str>, flags, None::<&str>)?)
}

/// What our file systems in memory for everybody call themselves.
const VIEW_SOURCE: &str = "larder-view";

/// No devices, no setuid bits, no programs.
const READ: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The same for mount(2).
const VIEW_FLAGS: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);

/// What every overlay of layers is mounted with: attributes by which a layer could name files of another place
/// (`trusted.overlay.redirect`, `trusted.overlay.metacopy`) count nothing (Linux, filesystems/overlayfs.rst).
pub const OVERLAY_OPTIONS: [&str; 2] = ["redirect_dir=nofollow", "metacopy=off"];

/// Maximum bytes of the list of directories that [`overlay`] takes: what a page (mount(2)) has left for it.
pub const MAX_LOWER: usize = 4096 - "lowerdir=,redirect_dir=nofollow,metacopy=off\0".len();

/// Mounts an overlay of directories, topmost first, read-only at `dir`: `lower` as in mount(8), at most [`MAX_LOWER`] bytes.
pub fn overlay(lower: &str, dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let options = format!("lowerdir={lower},{}", OVERLAY_OPTIONS.join(","));
    Ok(nix::mount::mount(Some(OVERLAY_SOURCE), dir, Some("overlay"), flags, Some(options.as_str()))?)
}

/// The source that our overlays name.
const OVERLAY_SOURCE: &str = "larder";

/// Returns whether what is mounted at `path`, which is absolute and without symbolic links, is a file system that
/// [`memory_for_all`] mounted; `None` if nothing is mounted there.
pub fn is_our_view(path: &Path) -> io::Result<Option<bool>> {
    is_called(path, b"tmpfs", VIEW_SOURCE)
}

fn is_called(path: &Path, wanted: &[u8], name: &str) -> io::Result<Option<bool>> {
    let text = fs::read("/proc/thread-self/mountinfo")?;
    let found = text.split(|b| *b == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|b| *b == b' ');
        let point = fields.nth(4)?;
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, source) = (rest.next()?, rest.next()?);
        (super::mounts::unescaped(point) == path.as_os_str().as_bytes())
            .then_some(kind == wanted && source == name.as_bytes())
    });
    Ok(found)
}

/// Whether something is mounted at `dir` itself (statx(2), Linux 5.8).
pub fn is_mount_point(dir: &Dir) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let facts = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Makes the mount at `path` read-only for this mount namespace. Copies of the mount in other namespaces stay as they are.
///
/// # Errors
/// Those of mount_setattr(2); `ENOSYS` before Linux 5.12.
pub fn make_read_only(path: &Path) -> io::Result<()> {
    attributes::add(&Dir::open(path)?, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
}

/// Unmounts what is mounted at `path`; `EBUSY` while anybody uses it. All that was written is on the device then.
pub fn unmount(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Whether nobody has anything open on what is mounted at `path`, a file or a directory, on which nothing else is mounted. Overlays that stand on it
/// are not seen.
pub fn is_idle(path: &Path) -> io::Result<bool> {
    // Looking at a mount takes back the mark of an earlier question, with which this one would unmount it.
    fs::symlink_metadata(path)?;
    match nix::mount::umount2(path, MntFlags::MNT_EXPIRE | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::EBUSY) => Ok(false),
        other => other.map(|()| true).map_err(io::Error::from),
    }
}

/// Takes what is mounted at `path`, and on directories in it, out of sight in one step. What is in use of it goes when it is no
/// longer.
pub fn unmount_tree(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Ends the propagation of mounts below `dir`, which is a mount point: what is unmounted there from now on stays elsewhere, also in
/// other mount namespaces.
///
/// # Errors
/// Those of mount(2); `EINVAL` if nothing is mounted at `dir`.
pub fn make_private(dir: &Path) -> io::Result<()> {
    let (none, flags) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    Ok(nix::mount::mount(none, dir, none, flags, none)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir_all, read_dir, remove_dir};

    use super::super::mounts::copies_below;
    use super::*;

    /// A directory cannot be removed while this namespace has a copy of what was mounted on it.
    #[test]
    fn copies_in_the_root_of_a_container() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: it mounts, so run it as root");
        }
        let run = || {
            private_namespace().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let (mounts, tasks) = (dir.path().join("icv"), dir.path().join("containerd"));
            let at = mounts.join("k1");
            create_dir_all(&at).unwrap();
            share_below(&mounts).unwrap();
            memory(&at).unwrap();
            fs::write(at.join("cache.json"), "").unwrap();
            let root = tasks.join("id/rootfs").join(mounts.strip_prefix("/").unwrap());
            create_dir_all(&root).unwrap();
            let (none, recursive) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
            nix::mount::mount(Some(&mounts), &root, none, recursive, none).unwrap();
            make_private(&root).unwrap();
            // Another container's copy of another volume.
            let other = tasks.join("id/rootfs/other");
            create_dir_all(&other).unwrap();
            memory(&other).unwrap();

            unmount(&at).unwrap();
            assert_eq!(remove_dir(&at).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            assert_eq!(copies_below(&tasks, &at).unwrap(), [root.join("k1")]);
            for copy in copies_below(&tasks, &at).unwrap() {
                unmount_tree(&copy).unwrap();
            }
            remove_dir(&at).unwrap();
            assert_eq!(read_dir(&root).unwrap().count(), 0);
            assert_eq!(copies_below(&tasks, Path::new("/other")).unwrap(), std::slice::from_ref(&other));
            for path in [&other, &root, &mounts] {
                unmount_tree(path).unwrap();
            }
        };
        std::thread::spawn(run).join().unwrap();
    }

    /// What other mounts of the same group have stays.
    #[test]
    fn what_is_private_is_unmounted_alone() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: it mounts, so run it as root");
        }
        let run = || {
            private_namespace().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let (one, two) = (dir.path().join("one"), dir.path().join("two"));
            create_dir_all(one.join("k1")).unwrap();
            create_dir_all(&two).unwrap();
            share_below(&one).unwrap();
            let none = None::<&str>;
            nix::mount::mount(Some(&one), &two, none, MsFlags::MS_BIND, none).unwrap();
            memory(&one.join("k1")).unwrap();
            fs::write(one.join("k1/cache.json"), "").unwrap();
            assert!(two.join("k1/cache.json").exists(), "they are one group");
            make_private(&two).unwrap();
            unmount_tree(&two.join("k1")).unwrap();
            assert!(one.join("k1/cache.json").exists() && !two.join("k1/cache.json").exists());
            for path in [&one, &two] {
                unmount_tree(path).unwrap();
            }
        };
        std::thread::spawn(run).join().unwrap();
    }
}
