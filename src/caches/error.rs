//! Why the daemon does not do what a tenant asked.

use std::time::Duration;

use super::store::StoreError;
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::image_cache::spec::SpecError;
use larder_model::image_cache::{CacheId, Status};

/// A request cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A field of the order is out of its limits.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The configuration has no cluster of this UID.
    #[error("building_config.cluster: there is no cluster {0:?} here")]
    UnknownCluster(String),
    /// The tenant has no such cache; whether somebody else has is not told.
    #[error("there is no image cache {0}")]
    NotFound(CacheId),
    /// Too many builds wait. How many is not told: they are other tenants' too.
    #[error("too many builds wait: try again in {} seconds", retry_after.as_secs())]
    QueueFull {
        /// When to ask again.
        retry_after: Duration,
    },
    /// Nothing is being built.
    #[error("image cache {id} is {status} and nothing is being built for it: there is nothing to cancel")]
    NotCancellable {
        /// The cache.
        id: CacheId,
        /// What it is.
        status: Status,
    },
    /// Only what is there can be made anew.
    #[error("image cache {id} is {status}{}: only an Available one can be refreshed", if *busy { " and being refreshed" } else { "" })]
    NotRefreshable {
        /// The cache.
        id: CacheId,
        /// What it is.
        status: Status,
        /// Whether a refresh is under way.
        busy: bool,
    },
    /// A refresh holds the old and the new volume for a while.
    #[error(
        "a refresh needs {need_gib} GiB beside the present volume, and {free_gib} GiB of {capacity_gib} GiB are free on this host"
    )]
    NoRoomToRefresh {
        /// The size of the cache.
        need_gib: u64,
        /// What is not reserved.
        free_gib: u64,
        /// What there is in all.
        capacity_gib: u64,
    },
    /// There is nothing to resolve again.
    #[error(
        "image cache {0} was made of an archive: to replace it import another, under another name, and delete this one"
    )]
    Imported(CacheId),
    /// An archive is larger than the cache that it is for.
    #[error(
        "the archive is larger than image_cache_size, {gib} GiB: want three times what its images come to"
    )]
    ArchiveTooLarge {
        /// Size of the cache.
        gib: u32,
    },
    /// A stream of gzip or zstd, which would have to be inflated to a file first.
    #[error("the archive is compressed as a whole: send the tar in it; its layers may be compressed")]
    ArchiveCompressed,
    /// Builders are pods elsewhere, which have nothing of what lies here.
    #[error("a cluster takes no archives: push the images to a registry and order them from there")]
    NoImports,
    /// The disk of this host is full.
    #[error("there is no room for the archive on this host now")]
    NoRoomForArchive,
    /// The images cannot be resolved.
    #[error("{}", .0.first().map_or("the images cannot be resolved", |first| first.message.as_str()))]
    Plan(Vec<Failure>),
    /// A signed request was sent again.
    #[error("this signed request was used before, or signed before the daemon started: sign it again")]
    Replayed,
    /// The daemon is on its way out.
    #[error("the daemon is stopping: try again in a moment")]
    Stopping,
    /// The records say no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// The class that decides status and retry.
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
