//! What can go wrong with the list, and with reading what it names.

use std::io;

use nix::errno::Errno;

use super::list::Malformed;
use crate::volume;
use larder_layer::error::io_class;
use larder_layer::path::shown;
use larder_model::class::Class;
use larder_model::escape::escape;

/// The list cannot be written or followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused something that an image cannot provoke.
    #[error("looking for what {} reads first: {source}", escape(image))]
    Looking {
        /// Name of the image.
        image: String,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("reading {path}: {source}")]
    Reading {
        /// Its path on the volume, escaped.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The list is not one.
    #[error("prefetch.list: {0}: verify the volume, or give --all")]
    Malformed(#[from] Malformed),
    /// There is no list.
    #[error("{path} has no prefetch.list, an older larder sealed it: give --all, or build it again")]
    NoList {
        /// The volume.
        path: String,
    },
    /// The list does not speak of an image of the volume, or names a layer that the image does not have.
    #[error(
        "prefetch.list does not agree with cache.json about {}: verify the volume, or give --all",
        escape(image)
    )]
    Disagrees {
        /// Name of the image.
        image: String,
    },
    /// No such image.
    #[error("{} is not on the volume; it has {}", escape(given), escape(images))]
    NoImage {
        /// What was asked for.
        given: String,
        /// What there is.
        images: String,
    },
    /// The seal cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Reading { source, .. } if is_absent(source) => Class::Corrupt,
            Error::Looking { source, .. } | Error::Reading { source, .. } => io_class(source),
            Error::Malformed(_) | Error::Disagrees { .. } => Class::Corrupt,
            Error::NoList { .. } | Error::NoImage { .. } => Class::NotFound,
            Error::Volume(e) => e.class(),
        }
    }

    /// A path on the volume that cannot be read.
    pub fn reading(path: &[u8], source: io::Error) -> Self {
        Error::Reading { path: shown(path), source }
    }
}

/// Whether what a sealed volume names is not there, or is no regular file behind plain directories: it was changed.
fn is_absent(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EINVAL))
}
