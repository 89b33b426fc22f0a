//! What is wrong with a command before anything was done.

use crate::telemetry::ParseLevelError;
use larder_model::class::Class;
use larder_model::job::{JobError, MAX_IMAGES};

/// A command cannot be carried out as given. Always exit code 64.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    /// Neither images nor a job.
    #[error(
        "no image given: name images, as in `larder build --volume ./cache --size 20GiB nginx:1.27`, or give --job FILE"
    )]
    NoImages,
    /// Images and a job that has its own.
    #[error(
        "images come from the job and from the command line: name them in one place, the job or the arguments"
    )]
    ImagesTwice,
    /// More than one job may hold.
    #[error("{given} images given: want 1 to {MAX_IMAGES}; split them into several volumes")]
    TooManyImages {
        /// Number given.
        given: usize,
    },
    /// No volume.
    #[error("no volume given: add --volume DIR, an empty directory or one of an earlier build")]
    NoVolume,
    /// No size.
    #[error(
        "no size given: add --size, as in --size 20GiB (`larder plan` says what the images ask for), or \"size\" in the job"
    )]
    NoSize,
    /// A size of nothing.
    #[error("the size is 0: want at least three times the size of the images, as in --size 20GiB")]
    ZeroSize,
    /// Pull secrets without a directory.
    #[error("pull secret {first} is named but no directory of secrets is given: add --secrets DIR")]
    NoSecretsDirectory {
        /// The first one named.
        first: String,
    },
    /// A disk is made before anybody looks into the archive.
    #[error(
        "a volume of kind disk or block wants {0}: what makes the disk does not look into the archive (`larder plan` with a job does)"
    )]
    DiskFromArchive(&'static str),
    /// Layers cannot be shared.
    #[error("--share {dir}: {reason}: give a directory with volumes/ in it, and a --volume directly in that")]
    Share {
        /// The directory.
        dir: String,
        /// Why.
        reason: String,
    },
    /// The job cannot be read.
    #[error("reading the job {path}: {source}")]
    ReadJob {
        /// Which file; `-` for standard input.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The job is larger than any job.
    #[error("the job {path} has more than {limit} bytes: is it a job?")]
    JobTooLarge {
        /// Which file.
        path: String,
        /// Most bytes.
        limit: u64,
    },
    /// The job is malformed.
    #[error("the job {path}: {source}")]
    Job {
        /// Which file.
        path: String,
        /// Why.
        source: JobError,
    },
    /// The log filter is malformed.
    #[error(transparent)]
    Level(#[from] ParseLevelError),
}

impl UsageError {
    /// Always [`Class::Invalid`].
    pub(super) fn class(&self) -> Class {
        Class::Invalid
    }
}
