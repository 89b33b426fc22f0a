//! Errors that concern one layer.

use std::io;

pub use super::fault::Fault;
use super::path::shown;
use super::space::Space;
use larder_model::class::Class;
use larder_model::io_error::{self, FileRole, Operation, hint};
use larder_model::shortage::Shortage;

/// The reason why a layer cannot be written to the volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A member is invalid; no honest layer contains such a member.
    #[error("member {path:?}: {fault}")]
    Hostile {
        /// Name of the member, escaped.
        path: String,
        /// The fault found in the member.
        fault: Fault,
    },
    /// The volume has reached its size cap.
    #[error("writing {path:?}: {full}")]
    Full {
        /// Name of the member, escaped.
        path: String,
        /// Bytes needed and bytes available.
        full: Shortage,
    },
    /// A system call of the file system failed.
    #[error("{doing} {path:?}: {source}{}", hint(Operation::WriteLayer, source))]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// Name of the member, escaped.
        path: String,
        /// The cause reported by the system.
        r#source: io::Error,
    },
}

impl Error {
    /// Creates an error for a hostile member.
    pub fn hostile(path: &[u8], fault: Fault) -> Self {
        Error::Hostile { path: named(path), fault }
    }

    /// Creates an error for a system call that failed for a member.
    pub fn io(doing: &'static str, path: &[u8], source: io::Error) -> Self {
        Error::Io { doing, path: named(path), source }
    }

    /// Returns the same error, except if the file system was full: then the error is the shortage that
    /// `space` reports.
    #[must_use]
    pub fn explained(self, space: &dyn Space) -> Self {
        match self {
            Error::Io { doing, path, source } => {
                match out_of_room(&source).then(|| space.exhausted()).flatten() {
                    Some(full) => Error::Full { path, full },
                    None => Error::Io { doing, path, source },
                }
            }
            other => other,
        }
    }

    /// Returns the error class, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Hostile { .. } => Class::Corrupt,
            Error::Full { .. } => Class::NoSpace,
            Error::Io { source, .. } => io_class(source),
        }
    }
}

/// Formats a path for a message: escaped, and truncated to a readable length.
pub fn named(path: &[u8]) -> String {
    const READABLE: usize = 400;
    let cut = &path[..path.len().min(READABLE)];
    let dots = if cut.len() < path.len() { "…" } else { "" };
    format!("{}{dots}", shown(cut))
}

/// Returns the error class of a system call that failed on the volume.
pub fn io_class(error: &io::Error) -> Class {
    io_error::class(error, FileRole::Own)
}

/// Reports whether the file system had no free blocks, inodes or quota.
pub fn out_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds the operation and the path to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, path: &[u8]) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, path: &[u8]) -> Result<T, Error> {
        self.map_err(|source| Error::io(doing, path, source))
    }
}
