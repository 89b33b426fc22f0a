//! Small file systems that run out of space and inodes. Use them in an isolated test, whose end unmounts
//! them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use super::succeed;

/// Type of a file system.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// ext4 on a loop device, with this many inodes.
    Ext4 { inodes: u32 },
    /// xfs on a loop device.
    Xfs,
    /// A file system in memory.
    Tmpfs,
}

/// A mounted file system. Unmounted when it is dropped, together with its loop device.
#[derive(Debug)]
pub(crate) struct FileSystem {
    dir: TempDir,
}

impl FileSystem {
    /// Creates a file system of `size` bytes and mounts it.
    pub(crate) fn new(kind: Kind, size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        fs::create_dir(dir.path().join("mount")).unwrap();
        File::create(&image).unwrap().set_len(size).unwrap();
        let mut mount = Command::new("mount");
        match kind {
            Kind::Ext4 { inodes } => {
                let inodes = inodes.to_string();
                let options = ["-q", "-F", "-m", "0", "-N", &inodes];
                succeed(Command::new("mkfs.ext4").args(options).arg(&image));
                mount.args(["-o", "loop"]).arg(&image);
            }
            Kind::Xfs => {
                succeed(Command::new("mkfs.xfs").args(["-q", "-f"]).arg(&image));
                mount.args(["-o", "loop"]).arg(&image);
            }
            Kind::Tmpfs => {
                mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]);
            }
        }
        let file_system = FileSystem { dir };
        succeed(mount.arg(file_system.path()));
        file_system
    }

    /// Grows this ext4 to `size` bytes. It is unmounted meanwhile, because growing in place needs more
    /// rights.
    pub(crate) fn grow(&self, size: u64) {
        let image = self.dir.path().join("image");
        unmount(&self.path());
        File::options().write(true).open(&image).unwrap().set_len(size).unwrap();
        succeed(Command::new("e2fsck").arg("-fp").arg(&image));
        succeed(Command::new("resize2fs").arg(&image));
        succeed(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(self.path()));
    }

    /// Returns the mount point.
    pub(crate) fn path(&self) -> PathBuf {
        Path::join(self.dir.path(), "mount")
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = umount2(&self.path(), MntFlags::MNT_DETACH);
    }
}

/// Unmounts the file system at `at`. Retries, because a process that another test starts briefly holds the
/// files that were open at its fork.
pub(crate) fn unmount(at: &Path) {
    let started = Instant::now();
    while let Err(error) = umount2(at, MntFlags::empty()) {
        let waits = error == Errno::EBUSY && started.elapsed() < Duration::from_secs(30);
        assert!(waits, "unmounting {}: {error}", at.display());
        sleep(Duration::from_millis(20));
    }
}

/// Unmounts everything below `dir`, starting with the last mount.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for point in points.map(Path::new).filter(|point| point.starts_with(dir)) {
        // An error means that it is unmounted already.
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}
