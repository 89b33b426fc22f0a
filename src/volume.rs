//! A capped place for layers, on which nothing is half there.
//!
//! ```text
//! cache.json                     what is on the volume and the digests that prove it: the seal
//! cache.json.sig                 who vouches for it, where the build was given a key
//! overlay/<chain ID>/            diff/ (the tree), link, lower        ┐ a containers/storage
//! overlay/l/<link>               -> ../<chain ID>/diff                │ additional image store
//! overlay-layers/                layers.lock, layers.json, <chain ID>.tar-split.gz
//! overlay-images/                images.lock, images.json, <config>/… ┘
//! erofs/<algorithm>/<2>/<diff ID>.erofs            the image of a change set      ┐ instead of those three
//! erofs/chain/<chain ID>.erofs                     what is laid over it           │ where layers are
//! erofs/tar-split/<diff ID>.gz                                                    ┘ EROFS images
//! oci/                           an OCI image layout without layer blobs
//! snapshots.metadata             "<chain ID> overlay/<chain ID>/diff" a line
//! prefetch.list                  what containers read first when they start
//! .larder/                       lock, use, job.json, journal, staging/
//! ```
//!
//! A layer is written in `.larder/staging`, then renamed into place, then named by a `committed` line of the journal;
//! after a syncfs(2) a `synced` line names all layers that it covered. In the boot that wrote them, committed layers are
//! trusted; after another boot only synced ones are. Everything else is swept when the volume is opened.

pub mod budget;
pub mod disk;
pub mod error;
pub mod fingerprint;
pub mod job;
mod journal;
pub mod layout;
pub mod lease;
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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use budget::Budget;
pub use error::Error;
pub use journal::Trust;
pub use open::{Cap, Opened, Opening, open};
pub use signature::read_trusted;

use error::Context;
use journal::Journal;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;
use larder_sys::lock::Lock;
use larder_sys::space;
use larder_sys::{Dir, xattr};
use place::Place;
use staging::Staging;

/// An open volume that is being filled. Whoever holds it is the only one.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    root: Dir,
    larder: Dir,
    place: Place,
    budget: Arc<Budget>,
    state: Mutex<State>,
    _lock: Lock,
}

#[derive(Debug)]
struct State {
    journal: Journal,
    committed: HashMap<ChainId, Layer>,
    unsynced: Vec<ChainId>,
    staged: u64,
}

impl Volume {
    /// Its directory.
    pub fn root(&self) -> &Dir {
        &self.root
    }

    /// The last part of its path.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// The record of a committed layer.
    pub fn layer(&self, chain_id: &ChainId) -> Option<Layer> {
        self.state().committed.get(chain_id).cloned()
    }

    /// The parent of a committed layer.
    pub fn parent(&self, chain_id: &ChainId) -> Option<ChainId> {
        self.state().committed.get(chain_id).and_then(|layer| layer.parent.clone())
    }

    /// Whether a layer is committed.
    pub fn has(&self, chain_id: &ChainId) -> bool {
        self.state().committed.contains_key(chain_id)
    }

    /// All committed layers, parents before children.
    pub fn layers(&self) -> Vec<Layer> {
        let state = self.state();
        let mut layers: Vec<Layer> = state.committed.values().cloned().collect();
        let depth = |layer: &Layer| {
            std::iter::successors(layer.parent.as_ref(), |id| state.committed.get(id)?.parent.as_ref())
                .count()
        };
        layers.sort_by_cached_key(|layer| (depth(layer), layer.chain_id.to_string()));
        layers
    }

    /// Bytes that the cap allows and the file system does not have; the build may end before the cap is reached. None where
    /// the file system is the cap.
    pub fn shortage(&self) -> Result<u64, Error> {
        if self.budget.is_held_by_kernel() {
            return Ok(0);
        }
        let free =
            space::free(&self.root).context("asking for free space at", &self.path.display().to_string())?;
        Ok(self.budget.cap().saturating_sub(self.budget.used()).saturating_sub(free))
    }

    /// Form of its layers.
    pub fn format(&self) -> LayerFormat {
        self.place.format()
    }

    /// The image of a change set, where a committed layer is one.
    pub fn image(&self, diff_id: &Digest) -> Result<Option<File>, Error> {
        self.place.image(diff_id)
    }

    /// A committed layer of this diff ID, under whatever parents, whose tar can be rebuilt.
    pub fn with_diff_id(&self, diff_id: &Digest) -> Option<Layer> {
        let state = self.state();
        state
            .committed
            .values()
            .find(|layer| layer.diff_id == *diff_id && layer.tar_split_size.is_some())
            .cloned()
    }

    /// A new empty place for a layer.
    pub fn stage(&self) -> Result<Staging, Error> {
        let number = {
            let mut state = self.state();
            state.staged += 1;
            state.staged
        };
        let parent = self.larder.ensure_dir(layout::STAGING, 0o700).context("opening", "staging")?;
        Staging::new(parent, &number.to_string(), Arc::clone(&self.budget), self.format())
    }

    /// Puts a finished layer in its place and says so in the journal. Its parent must be committed.
    pub fn commit(&self, staging: Staging, layer: Layer) -> Result<(), Error> {
        let chain_id = layer.chain_id.clone();
        let mut state = self.state();
        let lower = match &layer.parent {
            Some(parent) => Some(self.lower_line(&state, parent)?),
            None => None,
        };
        self.place.put(staging, &layer, lower.as_deref(), &self.budget)?;
        state.journal.committed(&layer, &self.budget)?;
        state.unsynced.push(chain_id.clone());
        state.committed.insert(chain_id, layer);
        Ok(())
    }

    /// Flushes all that was written, and names the committed layers that became durable by it in the journal. Returns how many
    /// these are.
    ///
    /// The kernel tells a lost write once. After that nothing may be flushed and believed any more, so layers that were not
    /// durable before are given up in the journal, and neither this run nor a later one counts them.
    pub fn sync(&self) -> Result<usize, Error> {
        let covered = self.state().unsynced.clone();
        // Not under the lock: other layers are committed meanwhile, and this sync does not vouch for them.
        self.flush()?;
        if covered.is_empty() {
            return Ok(0);
        }
        let mut state = self.state();
        state.journal.synced(&covered, &self.budget)?;
        state.unsynced.retain(|chain_id| !covered.contains(chain_id));
        Ok(covered.len())
    }

    /// Committed layers that no flush covered yet.
    pub fn unsynced(&self) -> Vec<ChainId> {
        self.state().unsynced.clone()
    }

    /// Gives up layers that turned out to be damaged, together with those that depend on them: their children, and layers with
    /// the same image. The journal says so, and the next run removes and fetches them. This run still knows them.
    pub fn give_up(&self, mut lost: Vec<ChainId>) -> Result<(), Error> {
        let shared = self.format() == LayerFormat::Erofs;
        let mut state = self.state();
        let state = &mut *state;
        loop {
            let images: Vec<&Digest> = state
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
                state.committed.values().filter(depends).map(|layer| layer.chain_id.clone()).collect();
            if more.is_empty() {
                break;
            }
            lost.extend(more);
        }
        state.unsynced.retain(|chain_id| !lost.contains(chain_id));
        state.journal.lost(&lost, &self.budget)
    }

    fn flush(&self) -> Result<(), Error> {
        // An ext4 without a journal writes its metadata after it has flushed the disk's own cache (Linux, sync_filesystem()
        // and ext4_sync_fs()); a directory's fsync(2) flushes that once more.
        let flushed = self.root.sync_file_system().and_then(|()| self.root.sync());
        let mut state = self.state();
        let state = &mut *state;
        let Err(source) = flushed else { return Ok(()) };
        let lost = std::mem::take(&mut state.unsynced);
        for chain_id in &lost {
            state.committed.remove(chain_id);
        }
        // The disk may refuse this line as well; then the error that follows is still the one to tell.
        let _ = state.journal.lost(&lost, &self.budget);
        Err(Error::WritesLost { path: self.path.display().to_string(), source })
    }

    /// The file `lower` of a child: the short names of all its parents, nearest first.
    fn lower_line(&self, state: &State, parent: &ChainId) -> Result<String, Error> {
        let mut line = String::new();
        let mut next = Some(parent.clone());
        while let Some(chain_id) = next {
            if !line.is_empty() {
                line.push(':');
            }
            line.push_str("l/");
            line.push_str(&chain_id.link());
            let layer =
                state.committed.get(&chain_id).ok_or_else(|| Error::ParentMissing(chain_id.clone()))?;
            next = layer.parent.clone();
        }
        Ok(line)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before it can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// New inodes below `dir` get exactly the owner and mode that they are given: no setgid directory (`fsGroup` of a pod)
/// and no default ACL of the volume may reach into an image.
fn isolate(dir: &Dir) -> std::io::Result<()> {
    let (uid, gid) = larder_sys::process::ids();
    larder_sys::dir::set_owner(dir, uid, gid)?;
    larder_sys::dir::set_mode(dir, 0o700)?;
    xattr::remove(dir, b"system.posix_acl_default")?;
    xattr::remove(dir, b"system.posix_acl_access")
}
