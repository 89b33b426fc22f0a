//! Errors of an export.

use crate::volume::{self, disk};
use larder_layer::erofs::TreeError;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::io_error::{FileRole, IoError};

/// The reason why an export or import failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The volume cannot be read or is not sealed.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The disk cannot be read or created.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The volume cannot be written as EROFS.
    #[error("writing the volume as EROFS: {0}")]
    Erofs(TreeError),
    /// The checksum of an image does not match its checksum file.
    #[error(
        "{path} has sha256 {found}, but its .sha256 file has {want}: it was changed, or copied only in part"
    )]
    Checksum {
        /// Path of the image.
        path: String,
        /// Checksum from the file next to the image.
        want: Digest,
        /// Computed checksum of the image.
        found: Digest,
    },
    /// The volume in an image cannot be verified.
    #[error("{path} is not imported: {why}")]
    Unverified {
        /// Path of the image.
        path: String,
        /// Class of the error.
        class: Class,
        /// Description of the problem.
        why: String,
    },
    /// The volume lacks the data to rebuild layers.
    #[error(
        "{path} was built with --no-tar-split: without tar-split files its layers cannot be exported; build it again without that flag"
    )]
    NoTarSplit {
        /// Path of the volume.
        path: String,
    },
    /// Another process is removing the volume.
    #[error("{path} is being removed")]
    BeingRemoved {
        /// Path of the volume.
        path: String,
    },
    /// The content of the volume does not match its seal.
    #[error("the volume does not match its seal: {what}: run `larder verify` for details")]
    Contradiction {
        /// Description of the mismatch.
        what: String,
    },
    /// A layer cannot be rebuilt, or does not have its diff ID.
    #[error("rebuilding layer {diff_id}: {message}")]
    Layer {
        /// Diff ID of the layer.
        diff_id: Digest,
        /// Description of the problem.
        message: String,
        /// Class of the error.
        class: Class,
    },
    /// A requested image is not on the volume.
    #[error("{reference} is not on the volume, which contains {have}")]
    NoImage {
        /// The requested reference.
        reference: String,
        /// References of the images on the volume.
        have: String,
    },
    /// The format cannot be written to a stream: a layout is a directory, and the first block of an EROFS
    /// image is written last.
    #[error(
        "oci-layout and erofs cannot be written to standard output: give a path, or --format oci-archive"
    )]
    ToStream,
    /// The volume has no disk image.
    #[error(
        "{path} is a directory volume, which has no image file: export it as erofs or oci-archive, or build it with --volume-kind disk"
    )]
    NoDisk {
        /// Path of the volume.
        path: String,
    },
    /// A disk image cannot be limited to selected images.
    #[error("a disk image always contains the whole volume: omit --image, or export an archive")]
    WholeDisk,
    /// A builder is writing to the disk.
    #[error("{path} is in use by a builder: wait until it ends")]
    InUse {
        /// Path of the volume.
        path: String,
    },
    /// The output exists already.
    #[error("{path} exists: give another path, or --force to replace it")]
    Exists {
        /// Path of the output.
        path: String,
    },
    /// The existing output is of a kind that is never replaced.
    #[error("{path} is {what}, which --force does not replace: remove it, or give another path")]
    Irreplaceable {
        /// Path of the output.
        path: String,
        /// Description of the existing file.
        what: &'static str,
    },
    /// Another export writes to the same path.
    #[error("another export to {path} is in progress: wait until it ends")]
    Busy {
        /// Path of the output.
        path: String,
    },
    /// The program of a container image needs libraries.
    #[error(
        "{path} needs libraries that its image would not contain: give a static program, as `make image` links it (-C target-feature=+crt-static)"
    )]
    Dynamic {
        /// Path of the program.
        path: String,
    },
    /// The user stopped the export.
    #[error("interrupted; nothing was written")]
    Interrupted,
    /// A document cannot be written as JSON; this is an internal error.
    #[error("writing {what}: {source}")]
    Json {
        /// Name of the document.
        what: &'static str,
        /// Cause from the serializer.
        r#source: serde_json::Error,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the class, which determines the exit code.
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
            Error::BeingRemoved { .. } | Error::InUse { .. } | Error::Busy { .. } => Class::Busy,
            Error::Contradiction { .. } | Error::Checksum { .. } => Class::Corrupt,
            Error::Layer { class, .. } | Error::Unverified { class, .. } => *class,
            Error::NoImage { .. } => Class::NotFound,
            Error::Exists { .. } | Error::Irreplaceable { .. } => Class::Conflict,
            Error::Interrupted => Class::Cancelled,
            Error::Json { .. } => Class::Internal,
            Error::Io(error) => error.class(FileRole::Given),
        }
    }
}
