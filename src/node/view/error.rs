//! The errors of creating and removing a view.

use crate::{rootfs, verify};
use larder_model::class::Class;
use larder_model::io_error::{FileRole, IoError};

/// A view cannot be created or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume is below the mount point.
    #[error("{0} contains the volume: use a directory outside of it")]
    Inside(String),
    /// Another file system is mounted at the mount point.
    #[error("{0}: something else is mounted there: unmount it, or use another directory")]
    Taken(String),
    /// The mount is not a view.
    #[error("{0}: the mount there is not a view that larder created")]
    NotOurs(String),
    /// The view is in use.
    #[error("the view at {at} is in use: {who}; stop the user, then try again")]
    Busy {
        /// Mount point of the view.
        at: String,
        /// Description of the user.
        who: String,
    },
    /// The documents would use too much memory.
    #[error("manifests and configs of the volume have {have} bytes, a view allows at most {most}")]
    TooMuch {
        /// Size of the documents on the volume, bytes.
        have: u64,
        /// Maximum size, bytes.
        most: u64,
    },
    /// Manifests, configs and `cache.json` do not match.
    #[error(transparent)]
    Documents(#[from] verify::Error),
    /// A layer cannot be mounted.
    #[error(transparent)]
    Layer(#[from] rootfs::Error),
    /// The records cannot be written as JSON.
    #[error("writing records of a view: {0}")]
    Json(serde_json::Error),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Inside(_) => Class::Invalid,
            Error::Taken(_) | Error::NotOurs(_) => Class::Conflict,
            Error::Busy { .. } => Class::Busy,
            Error::TooMuch { .. } => Class::NoSpace,
            Error::Documents(e) => e.class(),
            Error::Layer(e) => e.class(),
            Error::Json(_) => Class::Internal,
            Error::Io(error) => error.class(FileRole::Named),
        }
    }
}
