//! Ownership and permissions of the structure of a volume: its directories, and the files in them that are
//! not content of a layer.
//!
//! Only root and the verifying user may be able to change them. If another user owns or can write to a
//! directory or file, it could be replaced after verification. The same is true of a file that has a hard
//! link elsewhere.
//!
//! There are two exceptions:
//!
//! - A file system that is mounted read-only can belong to any user. An unprivileged pod fills it, and the
//!   node cannot write to it.
//! - The top of any mounted file system can be group-writable, because the kubelet gives it to the group of
//!   the pod (`fsGroup`).
//!
//! EROFS images and tar-split files can have more names, because older versions of Larder linked them between
//! volumes. Only their owner can write to them by any name, and the owner is root or the verifying user.
//! Files of a layer that is a directory have the owners of the image, so a hard link elsewhere is refused
//! ([`compare`](super::compare)).

use std::path::Path;

use rustix::fs::{StatVfsMountFlags, fstatvfs};

use super::error::{Error, Fault};
use larder_sys::{Dir, FileType, Stat, mount, process};

const GROUP: u32 = 0o020;
const OTHERS: u32 = 0o002;

/// The ownership rules for one volume. They depend on its mount, so they are determined before confinement,
/// after which the process sees the volume through another mount.
#[derive(Clone, Copy, Debug)]
pub struct Structure {
    is_read_only: bool,
    is_file_system: bool,
    user: u32,
}

impl Structure {
    /// Determines the rules for the volume at `path`.
    ///
    /// # Errors
    /// The volume cannot be opened or examined.
    pub fn of_path(path: &Path) -> Result<Self, Error> {
        let root = Dir::open(path);
        Structure::of(&root.map_err(|source| Error::io("opening the volume", path.display(), source))?)
    }

    /// Determines the rules for the volume at `root`.
    pub(super) fn of(root: &Dir) -> Result<Self, Error> {
        let io = |e| Error::io("examining", ".", e);
        let flags = fstatvfs(root).map_err(|e| io(e.into()))?.f_flag;
        Ok(Structure {
            is_read_only: flags.contains(StatVfsMountFlags::RDONLY),
            is_file_system: mount::is_mount_point(root).map_err(io)?,
            user: process::ids().0,
        })
    }

    /// Checks the top directory of the volume.
    pub(super) fn top(&self, root: &Dir) -> Result<(), Error> {
        let stat = root.stat_self().map_err(|e| Error::io("examining", ".", e))?;
        self.check(".", &stat, if self.is_file_system { OTHERS } else { GROUP | OTHERS })
    }

    /// Checks a directory other than the top.
    pub(super) fn directory(&self, at: &str, stat: &Stat) -> Result<(), Error> {
        self.check(at, stat, GROUP | OTHERS)
    }

    /// Checks a file that is not in the tree of a layer.
    pub(super) fn file(&self, at: &str, stat: &Stat) -> Result<(), Error> {
        if stat.file_type != FileType::Regular {
            return Err(Error::volume(at, Fault::Kind("is not a regular file")));
        }
        self.check(at, stat, GROUP | OTHERS)?;
        let is_shared = at.ends_with(".erofs") || at.ends_with(".gz");
        if stat.links != 1 && !is_shared {
            return Err(Error::volume(at, Fault::Names { want: 1, found: stat.links }));
        }
        Ok(())
    }

    fn check(&self, at: &str, stat: &Stat, refused: u32) -> Result<(), Error> {
        if stat.mode & refused != 0 {
            return Err(Error::volume(at, Fault::Writable(stat.mode)));
        }
        if ![0, self.user].contains(&stat.uid) && !self.is_read_only {
            return Err(Error::volume(at, Fault::Foreign(stat.uid)));
        }
        Ok(())
    }
}
