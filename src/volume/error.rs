//! What can go wrong with a volume.

use std::io;

use nix::errno::Errno;

use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::seal::SealError;
use larder_model::shortage::Shortage;
use larder_model::size::ByteSize;
use larder_model::trust::TrustError;

/// A volume cannot be used, or not be finished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The seal is not signed, though it should be.
    #[error("signing cache.json: {message}")]
    Sign {
        /// Class of the error.
        class: Class,
        /// What happened.
        message: String,
    },
    /// The directory holds files that are not Larder's.
    #[error(
        "{path} holds {name:?}, which is not Larder's: give an empty directory, or one of an earlier build"
    )]
    Foreign {
        /// The volume.
        path: String,
        /// A name found in it.
        name: String,
    },
    /// Nothing is mounted at the directory.
    #[error("{path} is no mount point: mount the file system, or give --volume-kind directory")]
    NotMounted {
        /// The directory.
        path: String,
    },
    /// The file system is smaller than what was asked for.
    #[error(
        "the file system at {path} has {}, --size asks for {}: mount a larger one, or give a smaller --size",
        ByteSize(*have),
        ByteSize(*need)
    )]
    TooSmall {
        /// The directory.
        path: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The directory holds a disk.
    #[error("{path} holds the disk of a volume: give --volume-kind disk, or another directory")]
    IsDisk {
        /// The directory.
        path: String,
    },
    /// The volume belongs to another job.
    #[error(
        "{path} is the volume of another job (its images: {images}): give another directory, or the same images, platform and format"
    )]
    OtherJob {
        /// The volume.
        path: String,
        /// References of that job.
        images: String,
    },
    /// Another builder works on the volume.
    #[error("{path} is locked by another builder: wait until it is done")]
    Locked {
        /// The volume.
        path: String,
    },
    /// The volume has no seal.
    #[error("{path} is not sealed: no cache.json in it; run the build to its end")]
    NotSealed {
        /// The volume.
        path: String,
    },
    /// The seal cannot be trusted.
    #[error("{path}: {source}")]
    Seal {
        /// The volume.
        path: String,
        /// Why.
        source: SealError,
    },
    /// Something on it is not what a volume has there.
    #[error("{path}: {what} {fault}: the volume was changed")]
    Forged {
        /// The volume.
        path: String,
        /// Which file.
        what: &'static str,
        /// What it is.
        fault: &'static str,
    },
    /// Nobody who is believed vouches for it.
    #[error("{path}: {source}")]
    Trust {
        /// The volume.
        path: String,
        /// Why.
        source: TrustError,
    },
    /// The cap is reached by metadata.
    #[error("{doing}: {shortage}")]
    Full {
        /// What was being done.
        doing: String,
        /// Need and have.
        shortage: Shortage,
    },
    /// The kernel lost writes to the volume.
    #[error(
        "flushing the file system of {path}: {source}; what was not durable before counts as lost, check the disk and run the build again"
    )]
    WritesLost {
        /// The volume.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of ours is larger than a reader takes.
    #[error("{what} has {need} bytes, {limit} are allowed: give fewer images to one job")]
    TooLarge {
        /// Which file.
        what: &'static str,
        /// Its size, bytes.
        need: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// A layer was committed before its parent: a fault of ours.
    #[error("the parent {0} is not on the volume")]
    ParentMissing(ChainId),
    /// A file of ours cannot be written as JSON: a fault of ours.
    #[error("writing {what}: {source}")]
    Json {
        /// Which file.
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
    /// The class, which decides about retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Sign { class, .. } => *class,
            Error::Foreign { .. }
            | Error::IsDisk { .. }
            | Error::NotMounted { .. }
            | Error::OtherJob { .. }
            | Error::NotSealed { .. } => Class::Conflict,
            Error::Locked { .. } => Class::Busy,
            Error::Seal { .. } | Error::Forged { .. } => Class::Corrupt,
            Error::Trust { source, .. } => source.class(),
            Error::Full { .. } | Error::TooSmall { .. } => Class::NoSpace,
            Error::ParentMissing(_) | Error::Json { .. } | Error::WritesLost { .. } => Class::Internal,
            Error::TooLarge { .. } => Class::Invalid,
            Error::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC | Errno::EDQUOT) => Class::NoSpace,
                Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => Class::Denied,
                Some(Errno::ENOENT | Errno::ENOTDIR) => Class::NotFound,
                _ => Class::Internal,
            },
        }
    }
}

/// Adds what was being done to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, what: &str) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, what: &str) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing, what: what.to_owned(), source })
    }
}
