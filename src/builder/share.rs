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

pub use sweep::sweep;

pub(super) use entry::LayerLocation;
pub(super) use waiting::{IdleTracker, WaitLimit};

use super::supervisor::SupervisorClient;
use super::volume_name::VolumeName;
use crate::volume::lease::Lease;
use crate::volume::{disk, layout};
use entry::{Entry, SIZE};
use larder_model::digest::Digest;
use larder_model::io_error::{Context as _, IoError};
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
    #[error(transparent)]
    Io(#[from] IoError),
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
    supervisor: Option<SupervisorClient>,
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
        supervisor: Option<SupervisorClient>,
    ) -> Result<Self, Error> {
        let shown = dir.display();
        let root = Dir::open(dir).context("opening", &shown)?;
        let layers = root.ensure_dir(LAYERS, 0o700).context("creating layers/ in", &shown)?;
        let volumes = root.open_dir(VOLUMES).context("opening volumes/ in", &shown)?;
        Ok(Share { layers, volumes, own: own.clone(), supervisor })
    }

    /// Reports whether to wait for a layer that another builder is fetching. A disk is readable by others
    /// only once it is sealed, so builders of disks do not wait for each other.
    pub(super) fn waits(&self) -> bool {
        self.supervisor.is_none()
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
        let locked = LockedFile::try_exclusive(&self.layers, name.as_bytes());
        let Some(file) = locked.context("locking", format_args!("layers/{name}"))? else {
            return Ok(Claim::Locked);
        };
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
        let name = at.volume.clone();
        let mut root =
            self.volumes.open_dir(at.volume.as_str().as_bytes()).context("opening the volume", &name)?;
        if root.try_stat(disk::IMAGE).context("examining the volume", &name)?.is_some() {
            let supervisor = self.supervisor.as_ref().ok_or(Error::Disk)?;
            supervisor.mount(&at.volume).map_err(|refusal| Error::Refused(refusal.message))?;
            root =
                self.volumes.open_dir(at.volume.as_str().as_bytes()).context("opening the volume", &name)?;
        }
        let lease = Lease::shared(&root)?.ok_or(Error::BeingRemoved)?;
        let stored = match root.try_stat(layout::EROFS).context("examining the volume", &name)? {
            None => {
                let overlay = root.open_dir(layout::OVERLAY).context("opening overlay/ of", &name)?;
                let layer =
                    overlay.open_dir(at.chain_id.hex().as_bytes()).context("opening the layer of", &name)?;
                let diff = layer.open_dir(layout::DIFF).context("opening the tree of the layer of", &name)?;
                let splits = root.open_dir(layout::LAYERS).context("opening overlay-layers/ of", &name)?;
                let split = splits.open_file(layout::tar_split(&at.chain_id).as_bytes());
                StoredCopy::Directory {
                    diff,
                    split: split.context("opening the tar-split file of the layer of", &name)?,
                }
            }
            Some(_) => {
                let ([algorithm, prefix], name) = layout::image(diff_id);
                let erofs = root.open_dir(layout::EROFS).context("opening erofs/ of", &name)?;
                let images =
                    erofs.open_dir(algorithm.as_bytes()).and_then(|dir| dir.open_dir(prefix.as_bytes()));
                let images = images.context("opening the image of the layer of", &name)?;
                let splits = erofs.open_dir(layout::SPLITS).context("opening erofs/tar-split/ of", &name)?;
                let sidecar = format!("{name}{}", layout::VERITY);
                let verity = images.try_stat(sidecar.as_bytes()).context("examining the image of", &name)?;
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
        let Some(file) = locked.context("locking", format_args!("layers/{name}"))? else { return Ok(false) };
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
    Ok(written.context("writing", "a file of layers/")?)
}

fn file_name(diff_id: &Digest) -> String {
    format!("{}-{}", diff_id.algorithm().name(), diff_id.hex())
}

#[cfg(test)]
mod tests;
