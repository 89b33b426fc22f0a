//! Layers that several builders share: each is fetched by one of them and read by the others from its volume.
//!
//! ```text
//! DIR/volumes/<name>/        volumes; the one that is built is one of them
//! DIR/layers/<alg>-<hex>     one file a diff ID: locked (flock(2)) by the builder that fetches the layer,
//!                            its content says which volume has it, or will have it
//! ```
//!
//! - Who needs a layer takes the lock. Does the file name a volume that has it, he drops the lock and rebuilds the layer
//!   from there; else he keeps the lock and fetches.
//! - Once extracted, the layer is `ready` and the lock is free: nobody waits for a parent with a lock in his hand. Once
//!   committed, it is `at` a volume.
//! - Who sees `ready` waits for `at`, but only for a while in which he has nothing else to do (`patience`): two builders
//!   that have each the parent of the other's layer both end.
//! - Nothing is believed: a layer is proven by its diff ID as it is read, and whatever is wrong with a copy makes it be
//!   fetched. A lock dies with its holder.

mod entry;
mod patience;
mod sweep;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use entry::VolumeName;
pub use sweep::sweep;

pub(super) use entry::At;
pub(super) use patience::{Idle, Patience};

use super::keeper::Keeper;
use crate::volume::lease::Lease;
use crate::volume::{disk, layout};
use entry::{Entry, SIZE};
use larder_model::digest::Digest;
use larder_sys::Dir;
use larder_sys::lock::LockedFile;

const LAYERS: &[u8] = b"layers";
const VOLUMES: &[u8] = b"volumes";

/// Where builders say who has which layer of the shared directory `dir`.
pub fn layers(dir: &Path) -> PathBuf {
    dir.join("layers")
}

/// Layers cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The volume cannot be read now.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
    /// The volume is a disk, and nobody mounts it for this build.
    #[error("it is a disk, which a build of kind disk can read and others cannot")]
    Disk,
    /// The volume is a disk that cannot be mounted now.
    #[error("{0}")]
    Refused(String),
    /// Somebody removes the volume.
    #[error("the volume is being removed")]
    Leaving,
    /// The thread that worked ended.
    #[error("looking at shared layers ended: {0}")]
    Ended(String),
}

/// A directory of shared layers, open.
#[derive(Debug)]
pub(super) struct Share {
    layers: Dir,
    volumes: Dir,
    own: VolumeName,
    /// Who mounts the disks of others.
    keeper: Option<Keeper>,
}

/// What is to be done about a layer now.
#[derive(Debug)]
pub(super) enum Turn {
    /// Another builder fetches it.
    Locked,
    /// Another builder has it and will commit it.
    Ready,
    /// A volume has it.
    At(At),
    /// Nobody has it: to be fetched with the lock held.
    Fetch(Hold),
}

/// The lock of a layer that is being fetched.
#[derive(Debug)]
pub(super) struct Hold(LockedFile);

/// A copy of a layer on another volume, which stays there while this is held.
#[derive(Debug)]
pub(super) struct Copy {
    /// What was said of it.
    pub(super) at: At,
    /// Where it lies.
    pub(super) lies: Lies,
    /// Keeps the volume.
    pub(super) lease: Lease,
}

/// Where the copy of a layer lies.
#[derive(Debug)]
pub(super) enum Lies {
    /// As a directory.
    Directory {
        /// Its tree.
        diff: Dir,
        /// Its tar-split file.
        split: File,
    },
    /// As an image.
    Image {
        /// Where the image is, and its name.
        image: (Dir, String),
        /// Where its tar-split file is, and its name.
        split: (Dir, String),
        /// Whether it has a hash tree.
        verity: bool,
    },
}

impl Share {
    /// Opens `dir` for the builder of the volume `own` in it.
    pub(super) fn open(dir: &Path, own: &VolumeName, keeper: Option<Keeper>) -> Result<Self, Error> {
        let io = |doing: &'static str| {
            let path = dir.display().to_string();
            move |source| Error::Io { doing, path, source }
        };
        let root = Dir::open(dir).map_err(io("opening"))?;
        let layers = root.ensure_dir(LAYERS, 0o700).map_err(io("creating layers/ in"))?;
        let volumes = root.open_dir(VOLUMES).map_err(io("opening volumes/ in"))?;
        Ok(Share { layers, volumes, own: own.clone(), keeper })
    }

    /// Whether it is of use to wait for a layer that another builder has in hand. A disk can be read by others only when it is
    /// sealed, so that its builders do not wait for each other.
    pub(super) fn waits(&self) -> bool {
        self.keeper.is_none()
    }

    /// Looks whose turn it is to fetch a layer. Volumes in `refused` are not named again, and without `patient` a layer that
    /// is only ready is nobody's.
    pub(super) fn look(
        &self,
        diff_id: &Digest,
        refused: &[VolumeName],
        patient: bool,
    ) -> Result<Turn, Error> {
        let name = file_name(diff_id);
        let io = |doing, source| Error::Io { doing, path: format!("layers/{name}"), source };
        let locked = LockedFile::try_exclusive(&self.layers, name.as_bytes());
        let Some(file) = locked.map_err(|e| io("locking", e))? else { return Ok(Turn::Locked) };
        // A file too large is as good as none.
        let entry = file.read(SIZE as u64).ok().and_then(|bytes| Entry::parse(&bytes));
        Ok(match entry {
            Some(entry) if *entry.volume() == self.own || refused.contains(entry.volume()) => {
                Turn::Fetch(Hold(file))
            }
            Some(Entry::At(at)) => Turn::At(at),
            Some(Entry::Ready { .. }) if patient => Turn::Ready,
            _ => Turn::Fetch(Hold(file)),
        })
    }

    /// Opens the copy of the layer `diff_id` that a file named.
    pub(super) fn copy(&self, at: At, diff_id: &Digest) -> Result<Copy, Error> {
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
        let lease = Lease::shared(&root)?.ok_or(Error::Leaving)?;
        let lies = match root.try_stat(layout::EROFS).map_err(io("examining the volume"))? {
            None => {
                let overlay = root.open_dir(layout::OVERLAY).map_err(io("opening overlay/ of"))?;
                let layer =
                    overlay.open_dir(at.chain_id.hex().as_bytes()).map_err(io("opening the layer of"))?;
                let diff = layer.open_dir(layout::DIFF).map_err(io("opening the tree of the layer of"))?;
                let splits = root.open_dir(layout::LAYERS).map_err(io("opening overlay-layers/ of"))?;
                let split = splits.open_file(layout::tar_split(&at.chain_id).as_bytes());
                Lies::Directory {
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
                Lies::Image {
                    image: (images, name),
                    split: (splits, layout::image_split(diff_id)),
                    verity: verity.is_some(),
                }
            }
        };
        Ok(Copy { at, lies, lease })
    }

    /// Says that the layer that was fetched under `hold` will be on this volume, and lets others in.
    pub(super) fn ready(&self, hold: Hold) -> Result<(), Error> {
        write(&hold.0, &Entry::Ready { volume: self.own.clone() })
    }

    /// Says that a layer is committed to this volume; false where another builder holds the lock.
    pub(super) fn publish(&self, diff_id: &Digest, layer: &larder_model::seal::Layer) -> Result<bool, Error> {
        let name = file_name(diff_id);
        let locked = LockedFile::try_exclusive(&self.layers, name.as_bytes());
        let locked = locked.map_err(|source| Error::Io {
            doing: "locking",
            path: format!("layers/{name}"),
            source,
        })?;
        let Some(file) = locked else { return Ok(false) };
        let at = At {
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
