//! The root directory of a confined process: a small read-only tmpfs on which only the needed paths are
//! mounted, under their original names.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::mount::attributes;

/// Harmless devices that libraries open.
pub(super) const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// Access rights to a path in the new root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Files can be created and changed.
    Write,
    /// Files can be read.
    Read,
}

/// A path of the new root.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Source path in the old root.
    pub(super) from: PathBuf,
    /// Target path in the new root.
    pub(super) at: PathBuf,
    /// Access rights to the path.
    pub(super) access: Access,
}

/// A mount that is not attached yet.
struct Piece {
    path: PathBuf,
    is_dir: bool,
    mount: OwnedFd,
}

/// Replaces the root directory of this process with one that contains only `places`. The process must be
/// alone in its mount namespace. Device nodes, setuid bits and execution have no effect there. Missing paths
/// are skipped if they are read-only.
///
/// # Errors
/// Those of the mount calls, with the path in question.
pub(super) fn replace(places: &[Place], temporary: bool) -> Result<(), (PathBuf, io::Error)> {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let absolute = |path: &Path| {
        here.join(path).components().filter(|part| *part != Component::CurDir).collect::<PathBuf>()
    };
    let mut pieces = Vec::new();
    for place in places {
        let (from, at) = (absolute(&place.from), absolute(&place.at));
        match piece(&from, Some(place.access)) {
            Ok(piece) => pieces.push(Piece { path: at, ..piece }),
            Err(e) if e.kind() == io::ErrorKind::NotFound && place.access == Access::Read => {}
            Err(e) => return Err((from, e)),
        }
    }
    for device in DEVICES {
        if let Ok(device) = piece(Path::new(device), None) {
            pieces.push(device);
        }
    }
    if temporary {
        let path = std::env::temp_dir();
        let mount = memory(&[("mode", "0700")]).map_err(|e| (path.clone(), e))?;
        pieces.push(Piece { path, is_dir: true, mount });
    }
    // Attach parents before the mounts below them.
    pieces.sort_by_key(|piece| piece.path.components().count());
    let proc = proc().map_err(|e| (PathBuf::from("/proc"), e))?;
    let root = memory(&[("mode", "0755"), ("size", "1m"), ("nr_inodes", "4096")])
        .map_err(|e| (PathBuf::from("/"), e))?;
    // The new root must be attached somewhere for a moment. No other process sees it.
    let over = Path::new("/proc").to_owned();
    attach(&root, CWD, &over).map_err(|e| (over.clone(), e))?;
    for piece in &pieces {
        put(&root, piece).map_err(|e| (piece.path.clone(), e))?;
    }
    put_proc(&root, &proc).map_err(|e| (over.clone(), e))?;
    attributes::add(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, false).map_err(|e| (over, e))?;
    pivot(&root).map_err(|e| (PathBuf::from("/"), e))?;
    // Relative paths keep their meaning if the working directory still exists.
    let _ = std::env::set_current_dir(here);
    Ok(())
}

/// Creates and attaches a file system, as [`replace`] does. Only for a process that exits afterwards.
///
/// # Errors
/// Those of the mount calls.
pub(super) fn probe() -> io::Result<()> {
    attach(&memory(&[])?, CWD, Path::new("/proc"))
}

/// Clones the tree at `path`, following symbolic links. Without `access` its attributes are not changed, for
/// devices.
fn piece(path: &Path, access: Option<Access>) -> io::Result<Piece> {
    let is_dir = fs::metadata(path)?.is_dir();
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mount = open_tree(CWD, path, flags)?;
    if let Some(access) = access {
        let mut wanted = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        if access == Access::Read {
            wanted |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        attributes::add(&mount, wanted, true)?;
    }
    Ok(Piece { path: path.to_owned(), is_dir, mount })
}

/// Creates an empty tmpfs without attaching it.
fn memory(options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "larder")?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn attach(mount: &OwnedFd, to: impl std::os::fd::AsFd, path: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", to, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Attaches a mount below the new root at its path.
fn put(root: &OwnedFd, piece: &Piece) -> io::Result<()> {
    let parent = piece.path.parent().unwrap_or(Path::new("/"));
    let parent = directories(root, parent)?;
    let Some(name) = piece.path.file_name() else { return Err(Errno::EINVAL.into()) };
    let made = if piece.is_dir {
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    };
    match made {
        // The path is on a read-only mount that was attached before.
        Err(rustix::io::Errno::EXIST | rustix::io::Errno::ROFS) => {}
        made => made?,
    }
    attach(&piece.mount, parent.as_fd(), Path::new(name))
}

/// Opens the directory at the absolute path `path` below the new root, and creates missing components.
/// Symbolic links are not followed, because they would lead out of the new root while the old one still
/// exists.
fn directories(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut dir = rustix::fs::openat(root, ".", flags, Mode::empty())?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        match rustix::fs::mkdirat(&dir, name.as_bytes(), Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST | rustix::io::Errno::ROFS) => {}
            made => made?,
        }
        dir = rustix::fs::openat(&dir, name.as_bytes(), flags, Mode::empty())?;
    }
    Ok(dir)
}

/// Creates a /proc that shows only the processes of this namespace (proc(5), `subset=pid`, Linux 5.8),
/// without attaching it.
fn proc() -> io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "proc")?;
    fsconfig_set_string(&context, "subset", "pid")?;
    let mounted = fsconfig_create(&context).and_then(|()| {
        let attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    });
    match mounted {
        // A container that hides parts of /proc forbids a new one (mount_namespaces(7)). The old one shows
        // more, but Landlock limits this process to its own directory.
        Err(rustix::io::Errno::PERM) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            Ok(open_tree(CWD, "/proc", flags)?)
        }
        mounted => Ok(mounted?),
    }
}

fn put_proc(root: &OwnedFd, proc: &OwnedFd) -> io::Result<()> {
    let dir = directories(root, Path::new("/proc"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(proc, "", &dir, "", flags)?)
}

/// Makes `root` the root directory and unmounts the old one (pivot_root(2), "pivot_root(\".\", \".\")").
fn pivot(root: &OwnedFd) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(nix::unistd::chdir("/")?)
}
