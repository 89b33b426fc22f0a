//! What goes wrong, in containerd's own kinds (its package errdefs).

use std::io;
use std::path::Path;

use crate::rootfs;
use larder_model::chain::ChainId;
use larder_model::class::Class;

/// A request that is not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such snapshot.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// The name is taken, or a volume has the layer.
    #[error("{0} already exists")]
    Exists(String),
    /// The snapshot is not of the kind that can be used so, or is in use.
    #[error("{0}")]
    Precondition(String),
    /// The layer lies on a volume that is not there.
    #[error(
        "layer {0} lies on a volume that is not attached: attach one that has it, or remove the image and pull it again"
    )]
    Detached(ChainId),
    /// The records cannot be read or written.
    #[error("{doing} records of snapshots: {source}")]
    Store {
        /// What was being done.
        doing: &'static str,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The records are not ours, or damaged.
    #[error("the records {path} cannot be used: {reason}")]
    Damaged {
        /// The database.
        path: String,
        /// Why.
        reason: String,
    },
    /// A layer of a volume cannot be mounted.
    #[error(transparent)]
    Layer(#[from] rootfs::Error),
    /// The kernel refused.
    #[error("{doing} {what}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A thread ended.
    #[error("a thread of the snapshotter ended: {0}")]
    Thread(String),
}

impl Error {
    /// The class, which decides about the exit code where the process cannot start.
    pub fn class(&self) -> Class {
        match self {
            Error::Invalid(_) => Class::Invalid,
            Error::NotFound(_) => Class::NotFound,
            Error::Exists(_) | Error::Precondition(_) => Class::Conflict,
            Error::Detached(_) => Class::Transient,
            Error::Store { source, .. } if is_full(source) => Class::NoSpace,
            Error::Store { .. } | Error::Thread(_) => Class::Internal,
            Error::Damaged { .. } => Class::Corrupt,
            Error::Layer(e) => e.class(),
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Class::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
                _ => Class::Internal,
            },
        }
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

pub(super) fn io(doing: &'static str, what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.display().to_string();
    move |source| Error::Io { doing, what, source }
}

pub(super) fn sql(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| Error::Store { doing, source }
}
