//! Mounts by descriptor (fsopen(2), fsmount(2), move_mount(2); Linux 5.2): what is mounted is mounted over the very
//! directory that was opened, and a mount that was attached nowhere goes with its descriptor.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::dir::Dir;

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
            Ext4::Filled => &["noinit_itable", "nodiscard"],
            Ext4::Read => &["ro", "noload"],
        };
        Mount::new("ext4", device, flags, matches!(how, Ext4::Read))
    }

    /// Mounts the EROFS on `device`, nowhere.
    pub fn erofs(device: &Path) -> Result<Self, MountError> {
        Mount::new("erofs", device, &["ro"], true)
    }

    fn new(file_system: &str, device: &Path, flags: &[&str], read_only: bool) -> Result<Self, MountError> {
        let plain = |source: rustix::io::Errno| MountError { source: source.into(), said: String::new() };
        let context = fsopen(file_system, FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain)?;
        let made = fsconfig_set_string(&context, "source", device).and_then(|()| {
            flags.iter().try_for_each(|flag| fsconfig_set_flag(&context, *flag))?;
            fsconfig_create(&context)
        });
        made.map_err(|e| MountError { source: e.into(), said: messages(&context) })?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
            | MountAttrFlags::MOUNT_ATTR_NOATIME;
        if read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        Ok(Mount(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(plain)?))
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

    /// Attaches it over the directory `over`, from where [`unmount`] takes it.
    pub fn attach(self, over: &Dir) -> io::Result<()> {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&self.0, "", over, "", flags)?)
    }
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

/// Whether something is mounted at `dir` itself (statx(2), Linux 5.8).
pub fn is_mount_point(dir: &Dir) -> io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let facts = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::empty())?;
    Ok(facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Unmounts what is mounted at `path`; `EBUSY` while anybody uses it. All that was written is on the device then.
pub fn unmount(path: &Path) -> io::Result<()> {
    Ok(nix::mount::umount2(path, MntFlags::UMOUNT_NOFOLLOW)?)
}
