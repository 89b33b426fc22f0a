//! What keeps a view from being made or removed.

use std::io;
use std::path::Path;

use crate::rootfs;
use crate::verify;
use larder_model::class::Class;

/// A view cannot be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume lies below the directory.
    #[error("{0} holds the volume: give a directory outside of it")]
    Inside(String),
    /// Something is mounted there.
    #[error("{0}: something else is mounted there: unmount it, or give another directory")]
    Taken(String),
    /// No view is mounted there.
    #[error("{0}: what is mounted there is no view that larder made")]
    NotOurs(String),
    /// It is in use.
    #[error("the view at {at} is in use: {who}; stop what uses it, then try again")]
    Busy {
        /// Where.
        at: String,
        /// What was seen.
        who: String,
    },
    /// Its documents would take too much memory.
    #[error("manifests and configs of the volume have {have} bytes, a view takes at most {most}")]
    TooMuch {
        /// Bytes on the volume.
        have: u64,
        /// Bytes that are taken.
        most: u64,
    },
    /// Manifests, configs and `cache.json` do not agree.
    #[error(transparent)]
    Documents(#[from] verify::Error),
    /// A layer cannot be mounted.
    #[error(transparent)]
    Layer(#[from] rootfs::Error),
    /// Records cannot be written.
    #[error("writing records of a view: {0}")]
    Json(serde_json::Error),
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
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Inside(_) => Class::Invalid,
            Error::Taken(_) | Error::NotOurs(_) => Class::Conflict,
            Error::Busy { .. } => Class::Busy,
            Error::TooMuch { .. } => Class::NoSpace,
            Error::Documents(e) => e.class(),
            Error::Layer(e) => e.class(),
            Error::Json(_) => Class::Internal,
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::ResourceBusy => Class::Busy,
                io::ErrorKind::NotFound => Class::NotFound,
                _ => larder_layer::error::io_class(source),
            },
        }
    }
}

pub(super) fn io(doing: &'static str, what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.display().to_string();
    move |source| Error::Io { doing, what, source }
}
