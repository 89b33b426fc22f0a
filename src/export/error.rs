//! Why a volume cannot be exported.

use std::io;

use nix::errno::Errno;

use crate::volume::{self, disk};
use larder_layer::erofs::TreeError;
use larder_model::class::Class;
use larder_model::digest::Digest;

/// An export failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be read or is not sealed.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The disk cannot be read, or not be made.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The volume cannot be written as EROFS.
    #[error("writing the volume as EROFS: {0}")]
    Erofs(TreeError),
    /// An image is not the one that was exported.
    #[error("{path} has sha256 {found}, the file beside it says {want}: it was changed, or not copied whole")]
    Sum {
        /// The image.
        path: String,
        /// The sum beside it.
        want: Digest,
        /// Its own.
        found: Digest,
    },
    /// The volume on an image is not what it says.
    #[error("{path} is not imported: {why}")]
    Unproven {
        /// The image.
        path: String,
        /// Class of the fault.
        class: Class,
        /// What is wrong.
        why: String,
    },
    /// There is nothing to rebuild layers from.
    #[error(
        "{path} was built with --no-tar-split: without tar-split files its layers cannot be exported; build it again without that flag"
    )]
    NoTarSplit {
        /// The volume.
        path: String,
    },
    /// Somebody is about to remove the volume.
    #[error("{path} is being removed")]
    Leaving {
        /// The volume.
        path: String,
    },
    /// The volume contradicts itself.
    #[error("the volume is not what its seal says: {what}; `larder verify` says more")]
    Contradiction {
        /// What does not hold.
        what: String,
    },
    /// A layer cannot be rebuilt, or is not what it should be.
    #[error("rebuilding the layer {diff_id}: {message}")]
    Layer {
        /// Its diff ID.
        diff_id: Digest,
        /// Why.
        message: String,
        /// Class of the fault.
        class: Class,
    },
    /// An image that is not on the volume was asked for.
    #[error("{reference} is not on the volume; it has {have}")]
    NoImage {
        /// The reference asked for.
        reference: String,
        /// References of the volume.
        have: String,
    },
    /// A directory, or an image whose first block is written last, cannot go to a stream.
    #[error(
        "oci-layout is a directory and cannot go to standard output: give a path, or --format oci-archive"
    )]
    ToStream,
    /// The volume is no disk.
    #[error(
        "{path} is a directory volume, which has no image file: export it as erofs or oci-archive, or build it with --volume-kind disk"
    )]
    NoDisk {
        /// The volume.
        path: String,
    },
    /// Single images cannot be taken out of an image of the disk.
    #[error("--image selects images of an archive; an image of a disk holds all of it: leave it out")]
    WholeDisk,
    /// The disk is being filled.
    #[error("{path} is in use by a builder: wait until it is done")]
    InUse {
        /// The disk.
        path: String,
    },
    /// Something is there already.
    #[error("{path} exists: give another path, or --force to replace it")]
    Exists {
        /// Where.
        path: String,
    },
    /// Something is there that is not replaced even by force.
    #[error("{path} is {what}, which --force does not replace: remove it, or give another path")]
    Irreplaceable {
        /// Where.
        path: String,
        /// What is there.
        what: &'static str,
    },
    /// Another export to the same place.
    #[error("another export to {path} is under way: wait until it is done")]
    Busy {
        /// Where.
        path: String,
    },
    /// A program that an image would have to have libraries for.
    #[error(
        "{path} needs libraries that its image would not have: want a static one, as `make image` links it (-C target-feature=+crt-static)"
    )]
    Dynamic {
        /// The program.
        path: String,
    },
    /// Somebody asked to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// A document cannot be written as JSON: a fault of ours.
    #[error("writing {what}: {source}")]
    Json {
        /// Which.
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The file system refused.
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
    /// The class, which decides the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Volume(error) => error.class(),
            Error::Disk(error) => error.class(),
            Error::Erofs(error) => error.class(),
            Error::NoTarSplit { .. }
            | Error::ToStream
            | Error::NoDisk { .. }
            | Error::WholeDisk
            | Error::Dynamic { .. } => Class::Invalid,
            Error::Leaving { .. } | Error::InUse { .. } | Error::Busy { .. } => Class::Busy,
            Error::Contradiction { .. } | Error::Sum { .. } => Class::Corrupt,
            Error::Layer { class, .. } | Error::Unproven { class, .. } => *class,
            Error::NoImage { .. } => Class::NotFound,
            Error::Exists { .. } | Error::Irreplaceable { .. } => Class::Conflict,
            Error::Interrupted => Class::Cancelled,
            Error::Json { .. } => Class::Internal,
            Error::Io { source, .. } => io_class(source),
        }
    }
}

pub(super) fn io_class(error: &io::Error) -> Class {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => Class::NoSpace,
        Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => Class::Denied,
        // Links are followed in no volume.
        Some(Errno::ELOOP) => Class::Corrupt,
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::EFBIG) => Class::Invalid,
        // The reader of the stream went away.
        Some(Errno::EPIPE) => Class::Cancelled,
        _ => Class::Internal,
    }
}

/// Adds what was being done to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, what: impl std::fmt::Display) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, what: impl std::fmt::Display) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing, what: what.to_string(), source })
    }
}
