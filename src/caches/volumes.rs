//! Storage of volumes and their deletion. Volumes are on this host's disk or are snapshots of a cluster.

pub mod host;

use std::path::PathBuf;
use std::{fmt, io};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::attachments::{Attachment, AttachmentError};
use super::imports::Imports;
use super::record::{ClusterSnapshot, Record};
use crate::builder::share;
use crate::volume;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::io_error::{FileRole, class};
use larder_model::seal;

/// A storage of volumes.
pub trait Volumes: fmt::Debug + Send + Sync {
    /// Returns the GiB that all volumes can occupy together if the configuration sets no limit, or
    /// [`UNLIMITED`] if nothing here limits them.
    fn capacity_gib(&self) -> Result<u64, StateError>;

    /// Prepares a build and returns the directories for its builder.
    fn places(&self, volume: VolumeId) -> BoxFuture<'_, Result<BuildDirs, StateError>>;

    /// Returns the storage of uploaded archives. `None` if builders cannot read them.
    fn imports(&self) -> Option<&Imports>;

    /// Lists all volumes, including partial ones. Other names are ignored.
    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>>;

    /// Lists the volumes of one image cache that [`list`](Volumes::list) can lack because it depends on a
    /// watch. Empty if `list` is always complete.
    fn list_of(&self, _record: &Record) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Returns `true` if a volume exists and is sealed. Its contents are not read.
    fn is_sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<bool, StateError>>;

    /// Describes a sealed volume.
    fn sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<Sealed, StateError>>;

    /// Returns a volume as a snapshot if it is sealed and readable. `with_path` determines whether its path
    /// is included.
    fn look(&self, volume: VolumeId, with_path: bool) -> BoxFuture<'_, Result<Option<Snapshot>, StateError>>;

    /// Takes a volume out of use, with everything made for it or from it. A volume in use is kept.
    fn discard(&self, volume: VolumeId) -> BoxFuture<'_, Result<Discarded, StateError>>;

    /// Returns what uses a volume that a newer one has replaced. `None` if nothing does. On a host,
    /// [`discard`](Volumes::discard) detects the uses itself.
    fn in_use(&self, _: VolumeId) -> BoxFuture<'_, Result<Option<String>, StateError>> {
        Box::pin(async { Ok(None) })
    }

    /// Lists the volumes that are attached to this host. Empty in a cluster, where the nodes' agents attach
    /// snapshots.
    fn attached(&self) -> BoxFuture<'_, Result<Vec<AttachedVolume>, StateError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Returns the free space of the file system that contains the volumes, bytes. `None` in a cluster, where
    /// each volume has a disk of its own.
    fn free_bytes(&self) -> Result<Option<u64>, StateError> {
        Ok(None)
    }

    /// Starts to delete discarded volumes in the background; `discarded` is `true` if there are new ones.
    /// This takes time, so deletions, starts and stops do not wait for it. The next start continues an
    /// interrupted deletion.
    fn tidy(&self, discarded: bool);
}

/// A capacity that is equivalent to no limit, GiB.
pub const UNLIMITED: u64 = u64::MAX >> 30;

/// The directories for a builder.
#[derive(Clone, Debug)]
pub struct BuildDirs {
    /// Directory of the volume to fill.
    pub volume: PathBuf,
    /// Directory that builders of the tenant share (`larder build --share`).
    pub share: PathBuf,
}

/// A volume that is attached to this host.
#[derive(Clone, Debug)]
pub struct AttachedVolume {
    /// Identity of the volume.
    pub volume: VolumeId,
    /// Record of its mount point and of the runtimes that use it.
    pub attachment: Attachment,
}

/// The description of a sealed volume.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Content of its seal, if it can be read from here.
    pub content: Option<seal::Content>,
    /// The snapshot of the volume, in a cluster.
    pub snapshot: Option<ClusterSnapshot>,
}

/// A sealed volume of an image cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Generation number; each refresh increments it.
    pub generation: u32,
    /// `true` if this volume is the served one.
    pub served: bool,
    /// `true` if it is attached, mounted, or the backing file of a loop device.
    pub in_use: bool,
    /// Digest of the content that `cache.json` describes.
    pub digest: Digest,
    /// Time at which the volume was sealed.
    pub sealed_at: DateTime<Utc>,
    /// `disk`: an ext4 image, `disk.img`; `directory`: a tree on a file system of the host;
    /// `volume_snapshot`: in the storage of a cluster.
    pub kind: Kind,
    /// Total size of its layers as tars, bytes.
    pub size: u64,
    /// Size of the disk image, or of the smallest volume that the snapshot can be restored to, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_size: Option<u64>,
    /// Space that the disk image occupies on the host, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_allocated: Option<u64>,
    /// Path on the host, for the tenant `admin` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<PathBuf>,
}

/// The kind of storage of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory on the host.
    Directory,
    /// A disk image file.
    Disk,
    /// A snapshot in the storage of a cluster.
    VolumeSnapshot,
}

/// The reason why the volumes or the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon uses the state directory.
    #[error(
        "the state directory {0} is in use by another larder: stop it, or give this one a directory of its own"
    )]
    InUse(PathBuf),
    /// A file system operation failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The path of the operation.
        path: PathBuf,
        /// The error of the kernel.
        r#source: io::Error,
    },
    /// A volume cannot be read.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The attachment records cannot be read.
    #[error(transparent)]
    Attachments(#[from] AttachmentError),
    /// The shared directory of builders cannot be cleaned up.
    #[error(transparent)]
    Share(#[from] share::Error),
    /// The cluster that stores the volumes failed.
    #[error("{reason}")]
    Cluster {
        /// The operation, its object, and the cluster's answer.
        reason: String,
        /// The class of the failure.
        class: Class,
    },
    /// A disk task was aborted.
    #[error("the disk task was aborted: {0}")]
    Broken(String),
}

impl StateError {
    /// Returns the class, which determines the exit code and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            StateError::InUse(_) => Class::Conflict,
            StateError::Io { source, .. } => class(source, FileRole::Own),
            StateError::Volume(e) => e.class(),
            StateError::Attachments(e) => e.class(),
            StateError::Share(_) | StateError::Broken(_) => Class::Internal,
            StateError::Cluster { class, .. } => *class,
        }
    }
}

/// The identity of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeId {
    /// The tenant that owns it.
    pub tenant: TenantName,
    /// The cache that it belongs to.
    pub id: CacheId,
    /// Generation number of the volume.
    pub generation: u32,
}

/// The result of discarding a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// The volume is gone or did not exist.
    Gone,
    /// The volume is being deleted; check again.
    Going,
    /// The volume is in use, as described, and is kept for now.
    InUse(String),
}
