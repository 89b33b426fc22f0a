//! Storage backend of the CSI driver: a volume is a directory, and a snapshot is a copy of one.
//!
//! No size is enforced. A test that needs a full volume puts the directory of volumes on a small file system.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use uuid::Uuid;

/// Name of the driver, used as `provisioner` and `driver` of classes.
pub const DRIVER: &str = "csi.larder.test";

/// Simulated outcome of the next snapshot request.
#[derive(Clone, Debug)]
pub enum SnapshotOutcome {
    /// The driver refuses the given number of times and then takes the snapshot. `u32::MAX` means always.
    Fails {
        /// Error message of the driver.
        message: String,
        /// Number of refusals.
        times: u32,
    },
    /// The snapshot is cut at once and ready after this time, as with a driver that uploads.
    Uploads(Duration),
    /// The driver does not respond. The content cannot be deleted until it does.
    Hangs,
}

/// Volumes and snapshots of the storage.
#[derive(Debug)]
pub(super) struct Driver {
    root: PathBuf,
    snapshots: HashMap<String, Stored>,
    /// Number of snapshots deleted while another content still offered them.
    torn: usize,
    /// Number of disks detached while they were mounted.
    unplugged: usize,
    fates: VecDeque<SnapshotOutcome>,
    /// Outcomes of contents, by uid.
    decided: HashMap<String, Option<SnapshotOutcome>>,
}

/// A snapshot in the storage.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Directory of the copy.
    pub path: PathBuf,
    /// Size of the source claim, in bytes.
    pub restore_size: u64,
    /// `true` if the volume was attached to a node when the snapshot was taken. Such a copy is only
    /// crash-consistent (facts/kubernetes.md, 2.5).
    pub attached: bool,
}

impl Driver {
    pub(super) fn new(root: &Path) -> Self {
        Driver {
            root: root.to_owned(),
            snapshots: HashMap::new(),
            torn: 0,
            unplugged: 0,
            fates: VecDeque::new(),
            decided: HashMap::new(),
        }
    }

    /// Creates new volumes below another directory.
    pub(super) fn move_to(&mut self, root: &Path) {
        root.clone_into(&mut self.root);
    }

    pub(super) fn decide(&mut self, fate: SnapshotOutcome) {
        self.fates.push_back(fate);
    }

    /// Returns the outcome of a content. At the first call, takes the next outcome that was set.
    pub(super) fn fate(&mut self, uid: &str) -> &mut Option<SnapshotOutcome> {
        let fates = &mut self.fates;
        self.decided.entry(uid.to_owned()).or_insert_with(|| fates.pop_front())
    }

    /// Repairs the storage: snapshots that were refused or not answered succeed at the next attempt.
    pub(super) fn heal(&mut self) {
        self.fates.clear();
        self.decided.clear();
    }

    /// Returns the directory of a volume.
    pub(super) fn volume(&self, handle: &str) -> PathBuf {
        self.root.join("volumes").join(handle)
    }

    /// Creates a volume, empty or from a snapshot, and returns its handle.
    pub(super) fn create_volume(&mut self, source: Option<&str>) -> Result<String, String> {
        let handle = Uuid::new_v4().to_string();
        let path = self.volume(&handle);
        let error = |e: std::io::Error| format!("{}: {e}", path.display());
        match source {
            Some(source) => {
                let stored = self.snapshots.get(source).ok_or("the snapshot is not in the storage")?;
                std::fs::create_dir_all(path.parent().unwrap_or(&self.root)).map_err(error)?;
                copy(&stored.path, &path)?;
            }
            None => {
                // Same content as after mkfs.
                std::fs::create_dir_all(path.join("lost+found")).map_err(error)?;
            }
        }
        Ok(handle)
    }

    /// Detaches a disk from a node. Counts the case that the disk is still mounted in the mount namespace of
    /// this process: such a mount could no longer be read.
    pub(super) fn unplug(&mut self, handle: &str) {
        let disk = format!("/volumes/{handle}");
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let roots = mounts.lines().filter_map(|line| line.split(' ').nth(3));
        self.unplugged += usize::from(roots.into_iter().any(|root| root.ends_with(&disk)));
    }

    pub(super) fn unplugged(&self) -> usize {
        self.unplugged
    }

    pub(super) fn delete_volume(&self, handle: &str) {
        let _ = std::fs::remove_dir_all(self.volume(handle));
    }

    pub(super) fn create_snapshot(
        &mut self,
        volume: &str,
        restore_size: u64,
        attached: bool,
    ) -> Result<String, String> {
        let handle = Uuid::new_v4().to_string();
        let path = self.root.join("snapshots").join(&handle);
        std::fs::create_dir_all(self.root.join("snapshots")).map_err(|e| e.to_string())?;
        copy(&self.volume(volume), &path)?;
        self.snapshots.insert(handle.clone(), Stored { path, restore_size, attached });
        Ok(handle)
    }

    /// Deletes a snapshot. `offered` is true if another content also refers to it.
    pub(super) fn delete_snapshot(&mut self, handle: &str, offered: bool) {
        self.torn += usize::from(offered);
        if let Some(stored) = self.snapshots.remove(handle) {
            let _ = std::fs::remove_dir_all(stored.path);
        }
    }

    pub(super) fn snapshot(&self, handle: &str) -> Option<&Stored> {
        self.snapshots.get(handle)
    }

    pub(super) fn torn(&self) -> usize {
        self.torn
    }

    pub(super) fn snapshots(&self) -> usize {
        self.snapshots.len()
    }
}

/// Copies a tree including owners, modes, times, links, devices and extended attributes.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let done = Command::new("cp").args(["-a", "--"]).args([from, to]).output().map_err(|e| e.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}
