//! Mounts by descriptor (fsopen(2), fsmount(2), move_mount(2); Linux 5.2).
//!
//! A file system is mounted over exactly the directory that was opened. A mount that was never attached
//! disappears with its descriptor.

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

/// Purpose of an ext4 mount. Device nodes and setuid bits on it have no effect, and nothing on it can be
/// executed.
#[derive(Clone, Copy, Debug)]
pub enum Ext4 {
    /// Mounted to be filled.
    Filled,
    /// Mounted to be read unchanged: not even the journal is replayed.
    Read,
}

/// A failed mount, with the messages of the file system.
#[derive(Debug, thiserror::Error)]
#[error("{source}{}", in_brackets(messages))]
pub struct MountError {
    /// Error of the system call.
    pub r#source: io::Error,
    /// Messages of the file system; empty if there are none.
    pub messages: String,
}

fn in_brackets(messages: &str) -> String {
    if messages.is_empty() { String::new() } else { format!(" ({messages})") }
}

/// A mounted file system. Until it is attached, it can be reached only through this value and is unmounted
/// when the value is dropped.
#[derive(Debug)]
pub struct Mount(OwnedFd);

impl Mount {
    /// Mounts the ext4 on `device` without attaching it.
    ///
    /// # Errors
    /// Those of fsopen(2), fsconfig(2) and fsmount(2).
    pub fn ext4(device: &Path, how: Ext4) -> Result<Self, MountError> {
        let flags: &[&str] = match how {
            // Inode tables are never zeroed in the background, neither during the build nor on the nodes.
            // Discarding would return the space that was reserved for the disk.
            Ext4::Filled => &["noinit_itable", "nodiscard", "errors=remount-ro"],
            // An inconsistency must not stop the machine, whatever the superblock requests.
            Ext4::Read => &["ro", "noload", "errors=remount-ro"],
        };
        Mount::new("ext4", device, flags, matches!(how, Ext4::Read))
    }

    /// Mounts the EROFS on `device` without attaching it.
    ///
    /// # Errors
    /// Those of fsopen(2), fsconfig(2) and fsmount(2).
    pub fn erofs(device: &Path) -> Result<Self, MountError> {
        Mount::new("erofs", device, &["ro"], true)
    }

    /// Mounts the EROFS image in the file at `path` without attaching it. Returns `None` if this kernel
    /// requires a block device (before Linux 6.12, or without `CONFIG_EROFS_FS_BACKED_BY_FILE`).
    ///
    /// # Errors
    /// Those of [`Mount::erofs`], except `ENOTBLK`.
    pub fn erofs_file(path: &Path) -> Result<Option<Self>, MountError> {
        match Mount::erofs(path) {
            Err(e) if e.source.raw_os_error() == Some(Errno::ENOTBLK as i32) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Clones the mount at `path` without attaching the clone.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn clone_of(path: &Path) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Ok(Mount(open_tree(CWD, path, flags)?))
    }

    /// Clones the directory `dir` as a separate mount without attaching it. This thread must have opened
    /// `dir` in its current mount namespace.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn of_dir(dir: &Dir) -> io::Result<Self> {
        Mount::of(dir)
    }

    /// Clones the file `file` as a separate mount without attaching it. This thread must have opened `file`
    /// in its current mount namespace.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn of_file(file: &File) -> io::Result<Self> {
        Mount::of(file)
    }

    fn of(inode: impl AsFd) -> io::Result<Self> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        Ok(Mount(open_tree(inode, "", flags)?))
    }

    /// Clones the mount at `path` and all mounts below it, without attaching the clone. Attaching it later
    /// makes the whole tree visible in one step.
    ///
    /// # Errors
    /// Those of open_tree(2).
    pub fn clone_of_tree(path: &Path) -> io::Result<Self> {
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        Ok(Mount(open_tree(CWD, path, flags)?))
    }

    fn new(file_system: &str, device: &Path, flags: &[&str], read_only: bool) -> Result<Self, MountError> {
        let plain = |source: rustix::io::Errno| MountError { source: source.into(), messages: String::new() };
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
        made.map_err(|e| MountError { source: e.into(), messages: messages(&context) })?;
        let mut attributes = READ | MountAttrFlags::MOUNT_ATTR_NOATIME;
        if read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        Ok(Mount(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(plain)?))
    }

    /// Returns the mount ID ([`id`]), which stays the same when the mount is attached.
    ///
    /// # Errors
    /// Those of [`id`].
    pub fn id(&self) -> io::Result<u64> {
        id(&self.0)
    }

    /// Opens the root directory of the mount.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn root(&self) -> io::Result<Dir> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Dir::from(rustix::fs::openat(&self.0, ".", flags, Mode::empty())?))
    }

    /// Returns a path to the mount for this process, valid as long as this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// Attaches the mount over the file or directory `over`: read-only, without device nodes, setuid bits or
    /// execution. The mount has these attributes before any process can reach it.
    ///
    /// Only for a thread with its own mount namespace ([`private_namespace`]). Before Linux 5.12 the
    /// attributes can only be set after attaching, when only that thread sees the mount.
    ///
    /// # Errors
    /// Those of mount_setattr(2), move_mount(2) and mount(2).
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

    /// Attaches the mount over the directory `over`. Use [`unmount`] to remove it.
    ///
    /// # Errors
    /// Those of move_mount(2).
    pub fn attach(self, over: &Dir) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.0, "", over, "", flags)?)
    }
}

/// Reports whether the kernel supports the file system `name`, and loads its module if needed.
///
/// # Errors
/// Those of reading /proc/filesystems.
pub fn has_file_system(name: &str) -> io::Result<bool> {
    let is_listed = || -> io::Result<bool> {
        let list = fs::read_to_string("/proc/filesystems")?;
        Ok(list.lines().any(|line| line.split_whitespace().next_back() == Some(name)))
    };
    Ok(is_listed()? || (fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).is_ok() && is_listed()?))
}

/// Returns the kernel's messages about a refused mount, without their level letters.
fn messages(context: &OwnedFd) -> String {
    let mut all: Vec<String> = Vec::new();
    let mut buffer = [0; 1024];
    // The number of messages is limited in case a kernel returns the same one forever.
    while let (Ok(len @ 1..), true) = (rustix::io::read(context, &mut buffer), all.len() < 8) {
        let text = String::from_utf8_lossy(&buffer[..len]);
        let text = text.trim();
        all.push(text.get(2..).unwrap_or(text).to_owned());
    }
    all.join("; ")
}

/// Gives this thread and its future child threads their own mount namespace. Other threads do not see what is
/// mounted in it, and it is unmounted when the last of these threads ends.
///
/// # Errors
/// Those of unshare(2) and mount(2).
pub fn private_namespace() -> io::Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)?)
}

/// Makes future mounts below the directory `dir` propagate to the mount namespaces that children of this
/// process create (mount_namespaces(7), "SHARED SUBTREES"). The caller must be in its own mount namespace.
///
/// # Errors
/// Those of mount(2).
pub fn share_below(dir: &Path) -> io::Result<()> {
    let none = None::<&str>;
    nix::mount::mount(Some(dir), dir, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    Ok(nix::mount::mount(none, dir, none, MsFlags::MS_SHARED, none)?)
}

/// Changes the working directory of this thread, which is its own since [`private_namespace`].
///
/// # Errors
/// Those of chdir(2).
pub fn work_in(dir: &Path) -> io::Result<()> {
    Ok(nix::unistd::chdir(dir)?)
}

/// Mounts an empty tmpfs over `dir`, accessible only to this user.
///
/// # Errors
/// Those of mount(2).
pub fn memory(dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some("larder"), dir, Some("tmpfs"), flags, Some("mode=0700"))?)
}

/// Mounts an empty tmpfs over `dir` on which device nodes work and that every user can enter. Only for a
/// thread with its own mount namespace ([`private_namespace`]).
///
/// # Errors
/// Those of mount(2).
pub fn memory_for_devices(dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(nix::mount::mount(Some("larder"), dir, Some("tmpfs"), flags, Some("mode=0711"))?)
}

/// Mounts an empty tmpfs over `dir` that every user can read. [`is_larder_view`] recognizes it.
///
/// # Errors
/// Those of mount(2).
pub fn memory_for_all(dir: &Path) -> io::Result<()> {
    let mut options = "mode=0755".to_owned();
    if selinux::is_enforcing() {
        options += &format!(",context=\"{}\"", selinux::LAYERS);
    }
    Ok(nix::mount::mount(Some(VIEW_SOURCE), dir, Some("tmpfs"), VIEW_FLAGS, Some(options.as_str()))?)
}

/// Makes the tmpfs that [`memory_for_all`] mounted over `dir` read-only.
///
/// # Errors
/// Those of mount(2).
pub fn memory_read_only(dir: &Path) -> io::Result<()> {
    let flags = VIEW_FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(nix::mount::mount(Some(VIEW_SOURCE), dir, None::<&str>, flags, None::<&str>)?)
}

/// Source name of the tmpfs mounts that every user can read.
const VIEW_SOURCE: &str = "larder-view";

/// Mount attributes: no device nodes, no setuid bits, no execution.
const READ: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// The flags of mount(2) that correspond to [`READ`].
const VIEW_FLAGS: MsFlags = MsFlags::MS_NODEV.union(MsFlags::MS_NOSUID).union(MsFlags::MS_NOEXEC);

/// Options of every overlay of layers. They disable the attributes with which a layer could refer to files
/// elsewhere (`trusted.overlay.redirect`, `trusted.overlay.metacopy`; Linux, filesystems/overlayfs.rst).
pub const OVERLAY_OPTIONS: [&str; 2] = ["redirect_dir=nofollow", "metacopy=off"];

/// Maximum length of the directory list for [`overlay`], in bytes: the space that remains in one page
/// (mount(2)).
pub const MAX_LOWER: usize = 4096 - "lowerdir=,redirect_dir=nofollow,metacopy=off\0".len();

/// Mounts a read-only overlay at `dir`. `lower` lists directories as in mount(8), topmost first, in at most
/// [`MAX_LOWER`] bytes.
///
/// # Errors
/// Those of mount(2).
pub fn overlay(lower: &str, dir: &Path) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let options = format!("lowerdir={lower},{}", OVERLAY_OPTIONS.join(","));
    Ok(nix::mount::mount(Some(OVERLAY_SOURCE), dir, Some("overlay"), flags, Some(options.as_str()))?)
}

/// Source name of Larder's overlay mounts.
const OVERLAY_SOURCE: &str = "larder";

/// Reports whether [`memory_for_all`] mounted the file system at `path`; `None` if nothing is mounted there.
/// `path` must be absolute and free of symbolic links.
///
/// # Errors
/// Those of reading /proc/thread-self/mountinfo.
pub fn is_larder_view(path: &Path) -> io::Result<Option<bool>> {
    is_mounted_from(path, b"tmpfs", VIEW_SOURCE)
}

fn is_mounted_from(path: &Path, wanted: &[u8], name: &str) -> io::Result<Option<bool>> {
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

/// Reports whether `dir` itself is a mount point (statx(2), Linux 5.8).
///
/// # Errors
/// Those of statx(2).
pub fn is_mount_point(dir: &Dir) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let facts = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Makes the mount at `path` read-only in this mount namespace. Copies of the mount in other namespaces are
/// not changed.
///
/// # Errors
/// Those of mount_setattr(2); `ENOSYS` before Linux 5.12.
pub fn make_read_only(path: &Path) -> io::Result<()> {
    attributes::add(&Dir::open(path)?, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
}

/// Unmounts the file system at `path`. Afterwards, all written data is on the device.
///
/// # Errors
/// Those of umount2(2); `EBUSY` while the mount is in use.
pub fn unmount(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Reports whether no file or directory of the mount at `path` is open and nothing else is mounted on it.
/// Overlays that use the mount as a layer are not detected.
///
/// # Errors
/// Those of lstat(2) and umount2(2).
pub fn is_idle(path: &Path) -> io::Result<bool> {
    // Accessing the mount clears the expiry mark of an earlier call. With that mark, this call would unmount
    // it.
    fs::symlink_metadata(path)?;
    match nix::mount::umount2(path, MntFlags::MNT_EXPIRE | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::EBUSY) => Ok(false),
        other => other.map(|()| true).map_err(io::Error::from),
    }
}

/// Detaches the mount at `path` and all mounts below it in one step. They disappear once they are no longer
/// in use.
///
/// # Errors
/// Those of umount2(2).
pub fn unmount_tree(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?)
}

/// Stops the propagation of mounts below the mount point `dir`. What is unmounted there later remains mounted
/// elsewhere, including other mount namespaces.
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

    /// A directory cannot be removed while this namespace has a copy of the mount that was on it.
    #[test]
    fn copies_in_the_root_of_a_container() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: this test mounts file systems and needs root");
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
            // A copy of another volume in another container.
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

    /// Mounts of other members of the peer group remain.
    #[test]
    fn private_mounts_do_not_propagate_unmounts() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("skipped: this test mounts file systems and needs root");
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
            assert!(two.join("k1/cache.json").exists(), "they are one peer group");
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
