//! Sharing of layers between builders: one of them fetches a layer, and the others read it from its volume.
//!
//! ```text
//! DIR/volumes/<name>/        volumes, including that of this build
//! DIR/layers/<alg>-<hex>     one file per diff ID: locked (flock(2)) by the builder that fetches the layer;
//!                            its content names the volume that has it, or will have it
//! ```
//!
//! - A builder that needs a layer takes the lock. If the file names a volume that has the layer, it releases
//!   the lock and rebuilds the layer from there. Otherwise it keeps the lock and fetches the layer.
//! - Once extracted, the layer is `ready` and the lock is released, so no builder waits for a parent while it
//!   holds a lock. Once committed, the layer is `at` a volume.
//! - A builder that sees `ready` waits for `at`, but only for a limited time in which it is idle (`waiting`).
//!   So two builders that each have the parent of the other's layer do not deadlock.
//! - Files and volumes are not trusted: a layer is verified by its diff ID when it is read, and it is fetched
//!   if a copy is wrong. A lock is released when its holder exits.

mod entry;
mod sweep;
mod waiting;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use entry::VolumeName;
pub use sweep::sweep;

pub(super) use entry::LayerLocation;
pub(super) use waiting::{IdleTracker, WaitLimit};

use super::keeper::SupervisorClient;
use crate::volume::lease::Lease;
use crate::volume::{disk, layout};
use entry::{Entry, SIZE};
use larder_model::digest::Digest;
use larder_sys::Dir;
use larder_sys::lock::LockedFile;

const LAYERS: &[u8] = b"layers";
const VOLUMES: &[u8] = b"volumes";

/// Returns the directory in `dir` whose files record which volume has which layer.
pub fn layers(dir: &Path) -> PathBuf {
    dir.join("layers")
}

/// The reason why layers cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// The operation, as "opening".
        doing: &'static str,
        /// Object of the operation.
        path: String,
        /// Cause from the system.
        source: std::io::Error,
    },
    /// The volume cannot be read now.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
    /// The volume is a disk, and this build cannot mount it.
    #[error("it was created with --volume-kind disk, and only builds of that kind can read it")]
    Disk,
    /// The volume is a disk that cannot be mounted now.
    #[error("{0}")]
    Refused(String),
    /// Another process is removing the volume.
    #[error("the volume is being removed")]
    BeingRemoved,
    /// A background thread panicked.
    #[error("the task that reads shared layers failed: {0}")]
    Ended(String),
}

/// An open directory of shared layers.
#[derive(Debug)]
pub(super) struct Share {
    layers: Dir,
    volumes: Dir,
    own: VolumeName,
    /// Mounts the disks of other volumes.
    keeper: Option<SupervisorClient>,
}

/// Result of trying to claim a layer.
#[derive(Debug)]
pub(super) enum Claim {
    /// Another builder is fetching it.
    Locked,
    /// Another builder has extracted it and will commit it.
    Ready,
    /// A volume has it.
    Available(LayerLocation),
    /// No volume has it. It must be fetched while the lock is held.
    Fetch(LayerLock),
}

/// The lock of a layer that is being fetched.
#[derive(Debug)]
pub(super) struct LayerLock(LockedFile);

/// A copy of a layer on another volume. The volume is not removed while this value exists.
#[derive(Debug)]
pub(super) struct SharedCopy {
    /// Location of the layer, as recorded.
    pub(super) at: LayerLocation,
    /// The stored form of the layer.
    pub(super) stored: StoredCopy,
    /// Lease of the volume.
    pub(super) lease: Lease,
}

/// The stored form of a layer's copy.
#[derive(Debug)]
pub(super) enum StoredCopy {
    /// A copy that is stored as a directory.
    Directory {
        /// Tree of the layer.
        diff: Dir,
        /// Tar-split file of the layer.
        split: File,
    },
    /// A copy that is stored as an image.
    Image {
        /// Directory and name of the image.
        image: (Dir, String),
        /// Directory and name of its tar-split file.
        split: (Dir, String),
        /// `true` if it has a hash tree.
        verity: bool,
    },
}

impl Share {
    /// Opens `dir` for the builder of the volume `own` in it.
    pub(super) fn open(
        dir: &Path,
        own: &VolumeName,
        keeper: Option<SupervisorClient>,
    ) -> Result<Self, Error> {
        let io = |doing: &'static str| {
            let path = dir.display().to_string();
            move |source| Error::Io { doing, path, source }
        };
        let root = Dir::open(dir).map_err(io("opening"))?;
        let layers = root.ensure_dir(LAYERS, 0o700).map_err(io("creating layers/ in"))?;
        let volumes = root.open_dir(VOLUMES).map_err(io("opening volumes/ in"))?;
        Ok(Share { layers, volumes, own: own.clone(), keeper })
    }

    /// Reports whether to wait for a layer that another builder is fetching. A disk is readable by others
    /// only once it is sealed, so builders of disks do not wait for each other.
    pub(super) fn waits(&self) -> bool {
        self.keeper.is_none()
    }

    /// Determines whether to fetch, copy or wait for a layer. Volumes in `refused` are ignored. Unless
    /// `may_wait` is set, a layer that is only ready counts as missing.
    pub(super) fn claim(
        &self,
        diff_id: &Digest,
        refused: &[VolumeName],
        may_wait: bool,
    ) -> Result<Claim, Error> {
        let name = file_name(diff_id);
        let io = |doing, source| Error::Io { doing, path: format!("layers/{name}"), source };
        let locked = LockedFile::try_exclusive(&self.layers, name.as_bytes());
        let Some(file) = locked.map_err(|e| io("locking", e))? else { return Ok(Claim::Locked) };
        // An oversized file counts as empty.
        let entry = file.read(SIZE as u64).ok().and_then(|bytes| Entry::parse(&bytes));
        Ok(match entry {
            Some(entry) if *entry.volume() == self.own || refused.contains(entry.volume()) => {
                Claim::Fetch(LayerLock(file))
            }
            Some(Entry::At(at)) => Claim::Available(at),
            Some(Entry::Ready { .. }) if may_wait => Claim::Ready,
            _ => Claim::Fetch(LayerLock(file)),
        })
    }

    /// Opens the copy of the layer `diff_id` at the recorded location.
    pub(super) fn copy(&self, at: LayerLocation, diff_id: &Digest) -> Result<SharedCopy, Error> {
        let io = |doing: &'static str| {
            let path = at.volume.to_string();
            move |source| Error::Io { doing, path, source }
        };
        let mut root =
            self.volumes.open_dir(at.volume.as_str().as_bytes()).map_err(io("opening the volume"))?;
        if root.try_stat(disk::IMAGE).map_err(io("examining the volume"))?.is_some() {
            let keeper = self.keeper.as_ref().ok_or(Error::Disk)?;
            keeper.mount(&at.volume).map_err(|refusal| Error::Refused(refusal.message))?;
            root = self.volumes.open_dir(at.volume.as_str().as_bytes()).map_err(io("opening the volume"))?;
        }
        let lease = Lease::shared(&root)?.ok_or(Error::BeingRemoved)?;
        let stored = match root.try_stat(layout::EROFS).map_err(io("examining the volume"))? {
            None => {
                let overlay = root.open_dir(layout::OVERLAY).map_err(io("opening overlay/ of"))?;
                let layer =
                    overlay.open_dir(at.chain_id.hex().as_bytes()).map_err(io("opening the layer of"))?;
                let diff = layer.open_dir(layout::DIFF).map_err(io("opening the tree of the layer of"))?;
                let splits = root.open_dir(layout::LAYERS).map_err(io("opening overlay-layers/ of"))?;
                let split = splits.open_file(layout::tar_split(&at.chain_id).as_bytes());
                StoredCopy::Directory {
                    diff,
                    split: split.map_err(io("opening the tar-split file of the layer of"))?,
                }
            }
            Some(_) => {
                let ([algorithm, prefix], name) = layout::image(diff_id);
                let erofs = root.open_dir(layout::EROFS).map_err(io("opening erofs/ of"))?;
                let images =
                    erofs.open_dir(algorithm.as_bytes()).and_then(|dir| dir.open_dir(prefix.as_bytes()));
                let images = images.map_err(io("opening the image of the layer of"))?;
                let splits = erofs.open_dir(layout::SPLITS).map_err(io("opening erofs/tar-split/ of"))?;
                let sidecar = format!("{name}{}", layout::VERITY);
                let verity = images.try_stat(sidecar.as_bytes()).map_err(io("examining the image of"))?;
                StoredCopy::Image {
                    image: (images, name),
                    split: (splits, layout::image_split(diff_id)),
                    verity: verity.is_some(),
                }
            }
        };
        Ok(SharedCopy { at, stored, lease })
    }

    /// Records that the layer fetched under `lock` will be on this volume, and releases the lock.
    pub(super) fn ready(&self, lock: LayerLock) -> Result<(), Error> {
        write(&lock.0, &Entry::Ready { volume: self.own.clone() })
    }

    /// Records that a layer is committed to this volume. Returns `false` if another builder holds the lock.
    pub(super) fn publish(&self, diff_id: &Digest, layer: &larder_model::seal::Layer) -> Result<bool, Error> {
        let name = file_name(diff_id);
        let locked = LockedFile::try_exclusive(&self.layers, name.as_bytes());
        let locked = locked.map_err(|source| Error::Io {
            doing: "locking",
            path: format!("layers/{name}"),
            source,
        })?;
        let Some(file) = locked else { return Ok(false) };
        let at = LayerLocation {
            volume: self.own.clone(),
            chain_id: layer.chain_id.clone(),
            blob: layer.blob.clone(),
            compression: layer.compression,
            size: layer.size,
        };
        write(&file, &Entry::At(at))?;
        Ok(true)
    }
}

fn write(file: &LockedFile, entry: &Entry) -> Result<(), Error> {
    let written = entry.encode().map_err(std::io::Error::from).and_then(|bytes| file.write(&bytes));
    written.map_err(|source| Error::Io { doing: "writing", path: "a file of layers/".into(), source })
}

fn file_name(diff_id: &Digest) -> String {
    format!("{}-{}", diff_id.algorithm().name(), diff_id.hex())
}

#[cfg(test)]
mod tests;
