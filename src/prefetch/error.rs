//! Errors of computing the list and of reading the files that it names.

use std::io;

use crate::volume;
use larder_layer::path::shown;
use larder_model::class::Class;
use larder_model::escape::escape;
use larder_model::io_error::{FileRole, class};
use larder_prefetch::list::Malformed;

/// The list cannot be computed, read or followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system failed in a way that an image cannot cause.
    #[error("finding the files that {} reads at start: {source}", escape(image))]
    Finding {
        /// Name of the image.
        image: String,
        /// Cause from the file system.
        r#source: io::Error,
    },
    /// A file cannot be read.
    #[error("reading {path}: {source}")]
    Reading {
        /// Path on the volume, escaped.
        path: String,
        /// Cause from the file system.
        r#source: io::Error,
    },
    /// The list is malformed.
    #[error("prefetch.list: {0}: run larder verify, or give --all")]
    Malformed(Malformed),
    /// The volume has no list.
    #[error("{path} has no prefetch.list because an older larder sealed it: give --all, or build it again")]
    NoList {
        /// Path of the volume.
        path: String,
    },
    /// The list lacks an image of the volume, or names a layer that the image does not have.
    #[error(
        "prefetch.list does not agree with cache.json about {}: run larder verify, or give --all",
        escape(image)
    )]
    Disagrees {
        /// Name of the image.
        image: String,
    },
    /// The requested image is not on the volume.
    #[error("{} is not on the volume, which contains {}", escape(given), escape(images))]
    NoImage {
        /// The requested name.
        given: String,
        /// Names of the images on the volume.
        images: String,
    },
    /// The seal cannot be read or is not trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
}

impl Error {
    /// Returns the class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Reading { source, .. } => class(source, FileRole::Sealed),
            Error::Finding { source, .. } => class(source, FileRole::Own),
            Error::Malformed(_) | Error::Disagrees { .. } => Class::Corrupt,
            Error::NoList { .. } | Error::NoImage { .. } => Class::NotFound,
            Error::Volume(e) => e.class(),
        }
    }

    /// Creates the error for a path on the volume that cannot be read.
    pub fn reading(path: &[u8], source: io::Error) -> Self {
        Error::Reading { path: shown(path), source }
    }
}
