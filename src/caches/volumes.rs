//! Volumes: where they are kept and how they go. What keeps them is this host's disk or the snapshots of a cluster.

pub mod host;

use std::fmt;
use std::io;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::attachments::AttachmentError;
use super::imports::Imports;
use super::record::{ClusterSnapshot, Record};
use crate::builder::share;
use crate::volume;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::seal;

/// What keeps volumes.
pub trait Volumes: fmt::Debug + Send + Sync {
    /// GiB that all volumes may occupy together where the configuration does not say; [`UNLIMITED`] where nothing here
    /// limits them.
    fn capacity_gib(&self) -> Result<u64, StateError>;

    /// Makes ready for a build, and says where its builder finds what it fills.
    fn places(&self, volume: VolumeId) -> BoxFuture<'_, Result<Places, StateError>>;

    /// Where archives are kept that tenants send; none where builders cannot read them.
    fn imports(&self) -> Option<&Imports>;

    /// All volumes and what is left of any. What is not named like one is left alone.
    fn list(&self) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>>;

    /// Volumes of one image cache that [`list`](Volumes::list) may lack, because it lists what a watch has seen. None if `list`
    /// always has them all.
    fn list_of(&self, _record: &Record) -> BoxFuture<'_, Result<Vec<VolumeId>, StateError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Whether a volume is there and sealed. What it holds is not looked at.
    fn is_sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<bool, StateError>>;

    /// What can be told of a sealed volume.
    fn sealed(&self, volume: VolumeId) -> BoxFuture<'_, Result<Sealed, StateError>>;

    /// A volume as a snapshot, if it is one: sealed, and to be read. `tell_path` says whether its path is told.
    fn look(&self, volume: VolumeId, tell_path: bool) -> BoxFuture<'_, Result<Option<Snapshot>, StateError>>;

    /// Takes a volume out of use, with everything that was made for it or from it. One that somebody holds stays.
    fn discard(&self, volume: VolumeId) -> BoxFuture<'_, Result<Discarded, StateError>>;

    /// Why a volume that a newer one has replaced must stay: what uses it. `None` if nothing does. On a host, the uses are what
    /// [`discard`](Volumes::discard) finds itself.
    fn in_use(&self, _: VolumeId) -> BoxFuture<'_, Result<Option<String>, StateError>> {
        Box::pin(async { Ok(None) })
    }

    /// Begins to remove what is left of discarded volumes; `discarded` says that some were just now. That takes its time, and
    /// nobody waits for it: neither who deletes, nor a start, nor a stop, after which the next start goes on.
    fn tidy(&self, discarded: bool);
}

/// As good as no limit, GiB.
pub const UNLIMITED: u64 = u64::MAX >> 30;

/// Where a builder finds what it fills.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directory of the volume.
    pub volume: PathBuf,
    /// What builders of the tenant share (`larder build --share`).
    pub share: PathBuf,
}

/// What can be told of a sealed volume.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// What its seal says, where it can be read from here.
    pub content: Option<seal::Content>,
    /// The snapshot that it is, in a cluster.
    pub snapshot: Option<ClusterSnapshot>,
}

/// A sealed volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number: each refresh makes a new one.
    pub generation: u32,
    /// Whether it is the one that is served.
    pub served: bool,
    /// Whether somebody has it attached or mounted, or a loop device stands on it.
    pub in_use: bool,
    /// Digest of what its `cache.json` says.
    pub digest: Digest,
    /// When it was sealed.
    pub sealed_at: DateTime<Utc>,
    /// `disk`: an ext4 image, `disk.img`; `directory`: a tree on a file system of the host;
    /// `volume_snapshot`: in the storage of a cluster.
    pub kind: Kind,
    /// Size of the layers on it, bytes, as their tars have it.
    pub size: u64,
    /// Size of the disk image, or of a volume that it can be restored to, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_size: Option<u64>,
    /// What the disk image occupies on the host, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image_allocated: Option<u64>,
    /// Where it is on the host. For the tenant `admin` only.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<PathBuf>,
}

/// What holds a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A disk image.
    Disk,
    /// A snapshot in the storage of a cluster.
    VolumeSnapshot,
}

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error(
        "the state directory {0} is in use by another larder: stop it, or give this one a directory of its own"
    )]
    InUse(PathBuf),
    /// The kernel refuses.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A volume cannot be looked at.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// Who has volumes attached cannot be told.
    #[error(transparent)]
    Attachments(#[from] AttachmentError),
    /// What builders share cannot be put in order.
    #[error(transparent)]
    Share(#[from] share::Error),
    /// A cluster that keeps volumes does not do what it was asked.
    #[error("{reason}")]
    Cluster {
        /// What was being done to what, and what the cluster said.
        reason: String,
        /// What kind of failure it is.
        class: Class,
    },
    /// Work on the disk broke off.
    #[error("work on the disk broke off: {0}")]
    Broken(String),
}

impl StateError {
    /// The class that decides exit code and retry.
    pub fn class(&self) -> Class {
        match self {
            StateError::InUse(_) => Class::Conflict,
            StateError::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Class::Denied,
                io::ErrorKind::StorageFull => Class::NoSpace,
                _ => Class::Internal,
            },
            StateError::Volume(e) => e.class(),
            StateError::Attachments(e) => e.class(),
            StateError::Share(_) | StateError::Broken(_) => Class::Internal,
            StateError::Cluster { class, .. } => *class,
        }
    }
}

/// Names a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeId {
    /// Whose it is.
    pub tenant: TenantName,
    /// Of which cache.
    pub id: CacheId,
    /// Its number.
    pub generation: u32,
}

/// What became of a volume that nobody needs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discarded {
    /// It is gone, or was not there.
    Gone,
    /// It is on its way out; ask again.
    Going,
    /// Somebody uses it, in the way told; it stays for now.
    InUse(String),
}
