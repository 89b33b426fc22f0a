//! The storage behind the CSI driver: a volume is a directory, a snapshot a copy of one.
//!
//! No size is enforced: a test that wants a full volume puts the directory of volumes on a small file system.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use uuid::Uuid;

/// Name of the driver, as `provisioner` and `driver` of classes.
pub const DRIVER: &str = "csi.larder.test";

/// What becomes of the next snapshot that is asked for.
#[derive(Clone, Debug)]
pub enum SnapshotFate {
    /// The driver refuses so many times, then takes it; `u32::MAX` is for ever.
    Fails {
        /// What it says.
        message: String,
        /// How often.
        times: u32,
    },
    /// It is cut at once and ready after so long: a driver that uploads.
    Uploads(Duration),
    /// The driver does not answer. Until it does the content cannot be deleted.
    Hangs,
}

/// What is stored.
#[derive(Debug)]
pub(in super::super) struct Driver {
    root: PathBuf,
    snapshots: HashMap<String, Stored>,
    /// How many snapshots went while another content still offered them.
    torn: usize,
    /// How many disks were taken from under a mount.
    unplugged: usize,
    fates: VecDeque<SnapshotFate>,
    /// Fates of contents, by their uid.
    decided: HashMap<String, Option<SnapshotFate>>,
}

/// A snapshot in the storage.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The directory of its copy.
    pub path: PathBuf,
    /// Bytes of the claim that it was taken of.
    pub restore_size: u64,
    /// The volume was still attached to a node when it was taken: such a copy is only crash-consistent (facts/kubernetes.md,
    /// 2.5).
    pub attached: bool,
}

impl Driver {
    pub(in super::super) fn new(root: &Path) -> Self {
        Driver {
            root: root.to_owned(),
            snapshots: HashMap::new(),
            torn: 0,
            unplugged: 0,
            fates: VecDeque::new(),
            decided: HashMap::new(),
        }
    }

    /// Puts new volumes elsewhere.
    pub(in super::super) fn move_to(&mut self, root: &Path) {
        root.clone_into(&mut self.root);
    }

    pub(in super::super) fn decide(&mut self, fate: SnapshotFate) {
        self.fates.push_back(fate);
    }

    /// The fate of a content: the first time it is asked for, the next that was set.
    pub(super) fn fate(&mut self, uid: &str) -> &mut Option<SnapshotFate> {
        let fates = &mut self.fates;
        self.decided.entry(uid.to_owned()).or_insert_with(|| fates.pop_front())
    }

    /// The storage is well again: what was refused or not answered is done at the next try.
    pub(in super::super) fn heal(&mut self) {
        self.fates.clear();
        self.decided.clear();
    }

    /// The directory of a volume.
    pub(in super::super) fn volume(&self, handle: &str) -> PathBuf {
        self.root.join("volumes").join(handle)
    }

    /// Makes a volume, empty or from a snapshot, and answers its handle.
    pub(super) fn create_volume(&mut self, source: Option<&str>) -> Result<String, String> {
        let handle = Uuid::new_v4().to_string();
        let path = self.volume(&handle);
        let told = |e: std::io::Error| format!("{}: {e}", path.display());
        match source {
            Some(source) => {
                let stored = self.snapshots.get(source).ok_or("the snapshot is not in the storage")?;
                std::fs::create_dir_all(path.parent().unwrap_or(&self.root)).map_err(told)?;
                copy(&stored.path, &path)?;
            }
            None => {
                // As mkfs leaves it.
                std::fs::create_dir_all(path.join("lost+found")).map_err(told)?;
            }
        }
        Ok(handle)
    }

    /// Takes a disk from a node. Whoever has it mounted still, in the mount namespace of this process, reads nothing from it
    /// any more.
    pub(super) fn unplug(&mut self, handle: &str) {
        let disk = format!("/volumes/{handle}");
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let roots = mounts.lines().filter_map(|line| line.split(' ').nth(3));
        self.unplugged += usize::from(roots.into_iter().any(|root| root.ends_with(&disk)));
    }

    pub(in super::super) fn unplugged(&self) -> usize {
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

    /// `offered` says that another content has it, too.
    pub(super) fn delete_snapshot(&mut self, handle: &str, offered: bool) {
        self.torn += usize::from(offered);
        if let Some(stored) = self.snapshots.remove(handle) {
            let _ = std::fs::remove_dir_all(stored.path);
        }
    }

    pub(in super::super) fn snapshot(&self, handle: &str) -> Option<&Stored> {
        self.snapshots.get(handle)
    }

    pub(in super::super) fn torn(&self) -> usize {
        self.torn
    }

    pub(in super::super) fn snapshots(&self) -> usize {
        self.snapshots.len()
    }
}

/// Copies a tree with owners, modes, times, links, devices and extended attributes.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let done = Command::new("cp").args(["-a", "--"]).args([from, to]).output().map_err(|e| e.to_string())?;
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}
