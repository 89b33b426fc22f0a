//! The errors with which the daemon refuses a tenant's request.

use std::time::Duration;

use super::store::StoreError;
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::image_cache::spec::SpecError;
use larder_model::image_cache::{CacheId, Status};

/// Time after which a client can retry when the queue is full.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// The reason why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the order is outside its limits.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The configuration has no cluster of this UID.
    #[error("building_config.cluster: there is no cluster {0:?} here")]
    UnknownCluster(String),
    /// The tenant has no such cache. The answer does not reveal whether another tenant has it.
    #[error("there is no image cache {0}")]
    NotFound(CacheId),
    /// Too many builds are queued. The number is not reported, because it includes other tenants' builds.
    #[error("too many queued builds: try again in {} seconds", retry_after.as_secs())]
    QueueFull {
        /// Time after which the client can retry.
        retry_after: Duration,
    },
    /// No build is in progress.
    #[error("image cache {id} is {status} and has no build to cancel")]
    NotCancellable {
        /// The requested cache.
        id: CacheId,
        /// The current status of the cache.
        status: Status,
    },
    /// Only an available cache can be refreshed.
    #[error("image cache {id} is {status}{}: only an Available cache can be refreshed", if *busy { " and being refreshed" } else { "" })]
    NotRefreshable {
        /// The requested cache.
        id: CacheId,
        /// The current status of the cache.
        status: Status,
        /// `true` if a refresh is already in progress.
        busy: bool,
    },
    /// A refresh temporarily needs space for both the old and the new volume.
    #[error(
        "a refresh needs {need_gib} GiB in addition to the current volume, and {free_gib} GiB of {capacity_gib} GiB are free on this host"
    )]
    NoRoomToRefresh {
        /// The size of the cache, GiB.
        need_gib: u64,
        /// The unreserved capacity of the host, GiB.
        free_gib: u64,
        /// The total capacity of the host, GiB.
        capacity_gib: u64,
    },
    /// An imported cache has no registry to resolve its images again.
    #[error(
        "image cache {0} was imported and cannot be refreshed: import a new archive under another name, and delete this cache"
    )]
    Imported(CacheId),
    /// The archive is larger than the cache that it is imported into.
    #[error(
        "the archive is larger than image_cache_size, {gib} GiB: set it to at least three times the total size of the images"
    )]
    ArchiveTooLarge {
        /// Size of the cache, GiB.
        gib: u32,
    },
    /// The archive is compressed as a whole (gzip or zstd). It would need to be decompressed to a file first.
    #[error("the archive is compressed as a whole: send the uncompressed tar; its layers can be compressed")]
    ArchiveCompressed,
    /// Builders are pods elsewhere and cannot read archives on this host.
    #[error("a cluster does not accept archives: push the images to a registry and order them from there")]
    NoImports,
    /// The disk of this host is full.
    #[error("there is no room for the archive on this host")]
    NoRoomForArchive,
    /// The images cannot be resolved.
    #[error("{}", .0.first().map_or("the images cannot be resolved", |first| first.message.as_str()))]
    Plan(Vec<Failure>),
    /// A signed request was sent a second time.
    #[error("this signed request was used before, or was signed before the daemon started: sign it again")]
    Replayed,
    /// The daemon is shutting down.
    #[error("the daemon is stopping: try again in a moment")]
    Stopping,
    /// The record store refused or failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::QueueFull => Error::QueueFull { retry_after: RETRY_AFTER },
            StoreError::Replayed => Error::Replayed,
            error => Error::Store(error),
        }
    }
}

impl Error {
    /// Returns the class, which determines the HTTP status and whether to retry.
    pub fn class(&self) -> Class {
        match self {
            Error::Spec(_) | Error::UnknownCluster(_) => Class::Invalid,
            Error::NotFound(_) => Class::NotFound,
            Error::QueueFull { .. } => Class::Busy,
            Error::NotCancellable { .. } | Error::NotRefreshable { .. } | Error::Imported(_) => {
                Class::Conflict
            }
            Error::NoRoomToRefresh { .. } | Error::NoRoomForArchive | Error::ArchiveTooLarge { .. } => {
                Class::NoSpace
            }
            Error::ArchiveCompressed | Error::NoImports => Class::Invalid,
            Error::Plan(failures) => {
                Class::decisive(failures.iter().map(|failure| failure.class)).unwrap_or(Class::Internal)
            }
            Error::Replayed => Class::Denied,
            Error::Stopping => Class::Transient,
            Error::Store(e) => e.class(),
        }
    }
}
