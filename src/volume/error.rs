//! Errors of a volume.

use std::io;

use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::io_error::{FileRole, IoError};
use larder_model::seal::SealError;
use larder_model::shortage::Shortage;
use larder_model::size::ByteSize;
use larder_model::trust::TrustError;

/// A volume cannot be used or completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The seal could not be signed as requested.
    #[error("cannot sign cache.json: {message}")]
    Sign {
        /// Class of the error.
        class: Class,
        /// Description of the failure.
        message: String,
    },
    /// The directory contains files that do not belong to Larder.
    #[error(
        "{path} contains {name:?}, which does not belong to Larder: use an empty directory, or one of an earlier build"
    )]
    Foreign {
        /// Path of the volume.
        path: String,
        /// Name of such a file.
        name: String,
    },
    /// The directory is not a mount point.
    #[error("{path} is not a mount point: mount the file system, or use --volume-kind directory")]
    NotMounted {
        /// Path of the directory.
        path: String,
    },
    /// The file system is smaller than the requested size.
    #[error(
        "the file system at {path} has {}, but --size is {}: mount a larger one, or use a smaller --size",
        ByteSize(*have),
        ByteSize(*need)
    )]
    TooSmall {
        /// Path of the directory.
        path: String,
        /// Requested size, in bytes.
        need: u64,
        /// Size of the file system, in bytes.
        have: u64,
    },
    /// The directory contains a disk.
    #[error(
        "{path} was created with --volume-kind disk: use the same flag, another directory, or --force to start over"
    )]
    IsDisk {
        /// Path of the directory.
        path: String,
    },
    /// The volume belongs to another job.
    #[error(
        "{path} is the volume of another job ({difference}): use another directory, the same job, or --force to start over"
    )]
    OtherJob {
        /// Path of the volume.
        path: String,
        /// The first property of that job which differs from the one of this job.
        difference: String,
    },
    /// Another builder is using the volume.
    #[error("{path} is locked by another builder: wait until it finishes")]
    Locked {
        /// Path of the volume.
        path: String,
    },
    /// The volume is attached, mounted or read.
    #[error("{path} is in use: {how}")]
    InUse {
        /// Path of the volume.
        path: String,
        /// The first use that was found.
        how: String,
    },
    /// The sealed volume has another size.
    #[error(
        "{path} is already sealed with --size {}, not {}: use the same size, another directory, or --force to start over",
        have.exact(),
        wanted.exact()
    )]
    OtherSize {
        /// Path of the volume.
        path: String,
        /// Size limit of the sealed volume.
        have: ByteSize,
        /// Requested size limit.
        wanted: ByteSize,
    },
    /// The volume has no seal.
    #[error("{path} is not sealed (it has no cache.json): run the build to completion")]
    NotSealed {
        /// Path of the volume.
        path: String,
    },
    /// The seal is damaged or unsupported.
    #[error("{path}: {source}")]
    Seal {
        /// Path of the volume.
        path: String,
        /// Problem with the seal.
        r#source: SealError,
    },
    /// A file of the volume is not what it should be.
    #[error("{path}: {what} {fault}: the volume was changed")]
    Forged {
        /// Path of the volume.
        path: String,
        /// Name of the file.
        what: &'static str,
        /// Problem with the file.
        fault: &'static str,
    },
    /// The signature of the volume is missing or not trusted.
    #[error("{path}: {source}")]
    Trust {
        /// Path of the volume.
        path: String,
        /// Problem with the signature.
        r#source: TrustError,
    },
    /// There is no space for metadata within the cap.
    #[error("{doing}: {shortage}")]
    Full {
        /// The operation that failed.
        doing: String,
        /// Space needed and space available.
        shortage: Shortage,
    },
    /// The kernel lost writes to the volume.
    #[error(
        "cannot flush the file system of {path}: {source}; data that was not durable is lost: check the disk and run the build again"
    )]
    WritesLost {
        /// Path of the volume.
        path: String,
        /// Error of the kernel.
        r#source: io::Error,
    },
    /// A file of Larder would exceed the limit of its reader.
    #[error("{what} has {need} bytes, but the limit is {limit}: use fewer images per job")]
    TooLarge {
        /// Name of the file.
        what: &'static str,
        /// Size of the file, in bytes.
        need: u64,
        /// Size limit, in bytes.
        limit: u64,
    },
    /// A layer was committed before its parent, which is an internal error.
    #[error("internal error: the parent {0} is not on the volume")]
    ParentMissing(ChainId),
    /// A file of Larder cannot be encoded as JSON, which is an internal error.
    #[error("cannot write {what}: {source}")]
    Json {
        /// Name of the file.
        what: &'static str,
        /// Error of the encoder.
        r#source: serde_json::Error,
    },
    /// The file system refused an operation.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the class of the error, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Sign { class, .. } => *class,
            Error::Foreign { .. }
            | Error::IsDisk { .. }
            | Error::NotMounted { .. }
            | Error::OtherJob { .. }
            | Error::OtherSize { .. }
            | Error::NotSealed { .. } => Class::Conflict,
            Error::Locked { .. } | Error::InUse { .. } => Class::Busy,
            Error::Seal { .. } | Error::Forged { .. } => Class::Corrupt,
            Error::Trust { source, .. } => source.class(),
            Error::Full { .. } | Error::TooSmall { .. } => Class::NoSpace,
            Error::ParentMissing(_) | Error::Json { .. } | Error::WritesLost { .. } => Class::Internal,
            Error::TooLarge { .. } => Class::Invalid,
            Error::Io(error) => error.class(FileRole::Named),
        }
    }
}

/// Converts an error of the volume, which fails the whole job.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::job(error.class(), error.to_string())
    }
}
