//! The errors of the snapshotter, mapped to those of containerd (its package errdefs).

use crate::rootfs;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, IoError};

/// The errors of snapshotter requests.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is not valid.
    #[error("{0}")]
    Invalid(String),
    /// The snapshot does not exist.
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    /// The name is already used, or a volume has the layer.
    #[error("{0} already exists")]
    Exists(String),
    /// The snapshot has the wrong kind, or is in use.
    #[error("{0}")]
    Precondition(String),
    /// The layer is on a volume that is not attached.
    #[error(
        "layer {0} is on a volume that is not attached: attach a volume with the layer, or remove the image and pull it again"
    )]
    Detached(ChainId),
    /// The records cannot be read or written.
    #[error("{doing} snapshot records: {source}")]
    Store {
        /// The action that failed.
        doing: &'static str,
        /// The error of SQLite.
        r#source: rusqlite::Error,
    },
    /// The records are damaged, or belong to another program.
    #[error("the database {path} cannot be used: {reason}")]
    Damaged {
        /// Path of the database.
        path: String,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// A layer of a volume cannot be mounted.
    #[error(transparent)]
    Layer(#[from] rootfs::Error),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A thread panicked.
    #[error("a thread of the snapshotter panicked: {0}")]
    Thread(String),
}

impl Error {
    /// Returns the error class, which determines the exit code if the process cannot start.
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
            Error::Io(error) => error.class(FileRole::Own),
        }
    }
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
}

pub(super) fn sql(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Error {
    move |source| Error::Store { doing, source }
}
