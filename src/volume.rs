//! A size-limited volume of layers that never exposes incomplete data.
//!
//! ```text
//! cache.json                     the seal: the content of the volume and the digests that prove it
//! cache.json.sig                 signature of the seal, if the build had a key
//! overlay/<chain ID>/            diff/ (the tree), link, lower        ┐ a containers/storage
//! overlay/l/<link>               -> ../<chain ID>/diff                │ additional image store
//! overlay-layers/                layers.lock, layers.json, <chain ID>.tar-split.gz
//! overlay-images/                images.lock, images.json, <config>/… ┘
//! erofs/<algorithm>/<2>/<diff ID>.erofs            the image of a change set      ┐ instead of those three
//! erofs/chain/<chain ID>.erofs                     the image mounted over it      │ if layers are
//! erofs/tar-split/<diff ID>.gz                                                    ┘ EROFS images
//! oci/                           an OCI image layout without layer blobs
//! snapshots.metadata             one line per layer: "<chain ID> overlay/<chain ID>/diff"
//! prefetch.list                  files that containers read first when they start
//! .larder/                       lock, use, job.json, journal, staging/
//! ```
//!
//! A layer is written to `.larder/staging`, renamed into place, and recorded by a `committed` line in the
//! journal. After a syncfs(2), a `synced` line lists all layers that it covered. In the boot that wrote them,
//! committed layers are trusted; after a reboot only synced ones are. Opening the volume removes everything
//! else.

pub mod budget;
mod clear;
pub mod disk;
pub mod error;
pub mod fingerprint;
pub mod job;
mod journal;
pub mod layout;
pub mod lease;
mod lock;
pub mod mounted;
mod open;
mod place;
pub mod proofs;
pub mod seal;
pub mod signature;
pub mod staging;
pub mod store;

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use budget::Budget;
pub use clear::start_over;
pub use error::Error;
pub use journal::Trust;
pub use open::{CapEnforcement, Opened, VolumeOptions, open};
pub use signature::read_trusted;

use journal::Journal;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;
use larder_sys::lock::Lock;
use larder_sys::{Dir, space, xattr};
use place::LayerDirs;
use staging::Staging;

/// An open volume that is being filled, exclusively by the holder of this value.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    root: Dir,
    larder: Dir,
    place: LayerDirs,
    budget: Arc<Budget>,
    /// Serializes commits. Held over writes to the disk, and locked before the index.
    journal: Mutex<Journal>,
    /// Never held over writes to the disk, so that async code can read it.
    index: RwLock<Index>,
    /// Number of staging directories that were created.
    staged: AtomicU64,
    _lock: Lock,
}

#[derive(Debug, Default)]
struct Index {
    committed: HashMap<ChainId, Layer>,
    unsynced: Vec<ChainId>,
}

impl Index {
    /// Adds the layers that depend on `lost` layers: their children, and layers with the same image if
    /// `shared`.
    fn add_dependents(&self, lost: &mut Vec<ChainId>, shared: bool) {
        loop {
            let images: Vec<&Digest> = self
                .committed
                .values()
                .filter(|layer| shared && lost.contains(&layer.chain_id))
                .map(|layer| &layer.diff_id)
                .collect();
            let depends = |layer: &&Layer| {
                !lost.contains(&layer.chain_id)
                    && (layer.parent.as_ref().is_some_and(|parent| lost.contains(parent))
                        || images.contains(&&layer.diff_id))
            };
            let more: Vec<ChainId> =
                self.committed.values().filter(depends).map(|layer| layer.chain_id.clone()).collect();
            if more.is_empty() {
                return;
            }
            lost.extend(more);
        }
    }

    /// Returns the content of the file `lower` of a child: the short names of all its parents, nearest first.
    fn lower_line(&self, parent: &ChainId) -> Result<String, Error> {
        let mut line = String::new();
        let mut next = Some(parent.clone());
        while let Some(chain_id) = next {
            if !line.is_empty() {
                line.push(':');
            }
            line.push_str("l/");
            line.push_str(&chain_id.link());
            let layer =
                self.committed.get(&chain_id).ok_or_else(|| Error::ParentMissing(chain_id.clone()))?;
            next = layer.parent.clone();
        }
        Ok(line)
    }
}

impl Volume {
    /// Returns the directory of the volume.
    pub fn root(&self) -> &Dir {
        &self.root
    }

    /// Returns the last component of the volume's path.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Returns the record of a committed layer.
    pub fn layer(&self, chain_id: &ChainId) -> Option<Layer> {
        self.index().committed.get(chain_id).cloned()
    }

    /// Returns the parent of a committed layer.
    pub fn parent(&self, chain_id: &ChainId) -> Option<ChainId> {
        self.index().committed.get(chain_id).and_then(|layer| layer.parent.clone())
    }

    /// Reports whether a layer is committed.
    pub fn has(&self, chain_id: &ChainId) -> bool {
        self.index().committed.contains_key(chain_id)
    }

    /// Returns all committed layers, parents before children.
    pub fn layers(&self) -> Vec<Layer> {
        let index = self.index();
        let mut layers: Vec<Layer> = index.committed.values().cloned().collect();
        let depth = |layer: &Layer| {
            std::iter::successors(layer.parent.as_ref(), |id| index.committed.get(id)?.parent.as_ref())
                .count()
        };
        layers.sort_by_cached_key(|layer| (depth(layer), layer.chain_id.to_string()));
        layers
    }

    /// Returns the bytes that the cap allows but the file system lacks. If there are any, the build can fail
    /// before it reaches the cap. Returns 0 if the file system itself is the cap.
    ///
    /// # Errors
    /// Those of fstatvfs(3).
    pub fn shortage(&self) -> Result<u64, Error> {
        if self.budget.is_held_by_kernel() {
            return Ok(0);
        }
        let free = space::free(&self.root).context("reading the free space of", self.path.display())?;
        Ok(self.budget.cap().saturating_sub(self.budget.used()).saturating_sub(free))
    }

    /// Returns the format of the layers.
    pub fn format(&self) -> LayerFormat {
        self.place.format()
    }

    /// Opens the EROFS image of a change set; `None` if no committed layer uses it.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn image(&self, diff_id: &Digest) -> Result<Option<File>, Error> {
        self.place.image(diff_id)
    }

    /// Returns a committed layer with this diff ID and any parents, whose tar can be rebuilt.
    pub fn with_diff_id(&self, diff_id: &Digest) -> Option<Layer> {
        let index = self.index();
        index
            .committed
            .values()
            .find(|layer| layer.diff_id == *diff_id && layer.tar_split_size.is_some())
            .cloned()
    }

    /// Creates an empty staging directory for a layer.
    ///
    /// # Errors
    /// [`Error::Full`], and those of creating directories.
    pub fn stage(&self) -> Result<Staging, Error> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed) + 1;
        let parent = self.larder.ensure_dir(layout::STAGING, 0o700).context("opening", "staging")?;
        Staging::new(parent, &number.to_string(), Arc::clone(&self.budget), self.format())
    }

    /// Moves a finished layer into place and records it in the journal. Its parent must be committed.
    ///
    /// # Errors
    /// [`Error::ParentMissing`], [`Error::Full`], and those of the file system.
    pub fn commit(&self, staging: Staging, layer: Layer) -> Result<(), Error> {
        let chain_id = layer.chain_id.clone();
        let mut journal = self.journal();
        let lower = layer.parent.as_ref().map(|parent| self.index().lower_line(parent)).transpose()?;
        self.place.put(staging, &layer, lower.as_deref(), &self.budget)?;
        journal.committed(&layer, &self.budget)?;
        let mut index = self.index_mut();
        index.unsynced.push(chain_id.clone());
        index.committed.insert(chain_id, layer);
        Ok(())
    }

    /// Flushes all written data, and records the committed layers that became durable in the journal. Returns
    /// the number of these layers.
    ///
    /// The kernel reports a lost write only once. A later flush would hide the loss. Layers that were not
    /// durable before are therefore recorded as lost, and neither this run nor a later one uses them.
    ///
    /// # Errors
    /// [`Error::WritesLost`], and those of writing the journal.
    pub fn sync(&self) -> Result<usize, Error> {
        let covered = self.unsynced();
        // No lock is held while flushing. Other layers can be committed meanwhile; this flush does not cover
        // them.
        self.flush()?;
        if covered.is_empty() {
            return Ok(0);
        }
        let mut journal = self.journal();
        journal.synced(&covered, &self.budget)?;
        self.index_mut().unsynced.retain(|chain_id| !covered.contains(chain_id));
        Ok(covered.len())
    }

    /// Returns the committed layers that are not flushed yet.
    pub fn unsynced(&self) -> Vec<ChainId> {
        self.index().unsynced.clone()
    }

    /// Records damaged layers as lost, together with the layers that depend on them: their children, and
    /// layers with the same image. The next run removes and fetches them again. This run still lists them.
    ///
    /// # Errors
    /// Those of writing the journal.
    pub fn mark_lost(&self, mut lost: Vec<ChainId>) -> Result<(), Error> {
        let shared = self.format() == LayerFormat::Erofs;
        let mut journal = self.journal();
        self.index().add_dependents(&mut lost, shared);
        self.index_mut().unsynced.retain(|chain_id| !lost.contains(chain_id));
        journal.lost(&lost, &self.budget)
    }

    fn flush(&self) -> Result<(), Error> {
        // An ext4 without a journal writes its metadata after it has flushed the disk's own cache (Linux,
        // sync_filesystem() and ext4_sync_fs()). The fsync(2) of a directory flushes that cache again.
        let flushed = self.root.sync_file_system().and_then(|()| self.root.sync());
        let Err(source) = flushed else { return Ok(()) };
        let mut journal = self.journal();
        let lost = {
            let mut index = self.index_mut();
            let lost = std::mem::take(&mut index.unsynced);
            for chain_id in &lost {
                index.committed.remove(chain_id);
            }
            lost
        };
        // The disk might refuse this line too. The error below is still the one to report.
        let _ = journal.lost(&lost, &self.budget);
        Err(Error::WritesLost { path: self.path.display().to_string(), source })
    }

    // A panic cannot leave the index or the journal inconsistent, because every change is complete.

    fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ensures that new inodes below `dir` get exactly the owner and mode that they are given. A setgid directory
/// (`fsGroup` of a pod) or a default ACL of the volume must not affect an image.
fn isolate(dir: &Dir) -> std::io::Result<()> {
    let (uid, gid) = larder_sys::process::ids();
    larder_sys::dir::set_owner(dir, uid, gid)?;
    larder_sys::dir::set_mode(dir, 0o700)?;
    xattr::remove(dir, b"system.posix_acl_default")?;
    xattr::remove(dir, b"system.posix_acl_access")
}

#[cfg(test)]
mod tests;
