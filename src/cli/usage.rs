//! Errors in a command line or job that are found before any work starts. This is the place for their
//! messages, which say what to change.

use crate::telemetry::ParseLevelError;
use larder_model::class::Class;
use larder_model::image_cache::spec::MAX_IMAGES as MAX_CACHE_IMAGES;
use larder_model::job::{JobError, MAX_IMAGES};

/// An invalid command line or job. The exit code is always 64.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    /// The command has neither images nor a job.
    #[error(
        "no image given: add images, for example `larder build --volume ./cache --size 20GiB nginx:1.27`, or --job FILE"
    )]
    NoImages,
    /// The command has images, and so does its job.
    #[error("both the job and the command line contain images: remove one of them")]
    ImagesTwice,
    /// The command has more images than a job can contain.
    #[error("{given} images given, the maximum is {MAX_IMAGES}: split them into several volumes")]
    TooManyImages {
        /// Number of images given.
        given: usize,
    },
    /// The command has no volume.
    #[error("no volume given: add --volume DIR, with an empty directory or that of an earlier build")]
    NoVolume,
    /// Neither the command nor the job has a size.
    #[error("no size given: add --size, for example --size 20GiB or --size auto, or \"size\" in the job")]
    NoSize,
    /// The size is zero.
    #[error("the size is 0: use at least three times the size of the images, for example --size 20GiB")]
    ZeroSize,
    /// The command has pull secrets, but no directory of secrets.
    #[error("pull secret {first} given without a directory of secrets: add --secrets DIR")]
    NoSecretsDirectory {
        /// Name of the first pull secret.
        first: String,
    },
    /// `--creds` has no user name or no password. The message must not contain its value.
    #[error("--creds: use USER:PASSWORD, or --authfile FILE, which keeps the password off the command line")]
    IncompleteCredentials,
    /// An option for a disk is missing. The disk is created before the archive is read.
    #[error(
        "a volume of kind disk or block needs {0}, because the disk is created before the archive is read (`larder plan` with a job shows the content)"
    )]
    DiskFromArchive(&'static str),
    /// `--force` is given for a device.
    #[error("--force does not work with --volume-kind block: use --format-device, which erases the device")]
    ForceForBlock,
    /// The directory of the page does not exist. This is found before the bench, which can take minutes.
    #[error("--html {0}: its directory does not exist: create it, or use another one")]
    NoDirectoryForPage(String),
    /// The directory of `--share` cannot be used.
    #[error(
        "--share {dir}: {reason}: use a directory that contains volumes/, and a --volume directly in that"
    )]
    Share {
        /// The directory of `--share`.
        dir: String,
        /// The reason why it cannot be used.
        reason: String,
    },
    /// The job file cannot be read.
    #[error("reading the job {path}: {source}")]
    ReadJob {
        /// Path of the job; `-` for standard input.
        path: String,
        /// The error of the system call.
        r#source: std::io::Error,
    },
    /// The job exceeds the size limit.
    #[error("the job {path} is larger than {limit} bytes: check the path")]
    JobTooLarge {
        /// Path of the job; `-` for standard input.
        path: String,
        /// Maximum size, bytes.
        limit: u64,
    },
    /// The job is not valid.
    #[error("the job {path}: {source}")]
    Job {
        /// Path of the job; `-` for standard input.
        path: String,
        /// The error of the parser.
        r#source: JobError,
    },
    /// A signing key is given for a disk image.
    #[error("--sign-key: a disk image is already sealed and keeps its signature, if any; remove the flag")]
    SignKeyForImage,
    /// An export would write to a terminal.
    #[error("standard output is a terminal: redirect it, or specify a path")]
    Terminal,
    /// The format of an export has no compressed layers.
    #[error("--compression applies only to oci-layout and oci-archive: remove it")]
    Compression,
    /// The daemon does not accept the kind of archive.
    #[error(
        "{0} is a skopeo directory, but the daemon accepts tars only: create one with skopeo copy dir:… oci-archive:…"
    )]
    SkopeoDirectory(String),
    /// An image of a volume for the daemon has no tag.
    #[error(
        "{0} has no tag, and its manifest digest changes when its layers are packed: choose other images with --image, or run `larder export` and import the archive"
    )]
    Untagged(String),
    /// An archive or volume for the daemon has more images than an image cache can have.
    #[error("{0} images are too many, a cache can have {MAX_CACHE_IMAGES}: choose some with --image")]
    TooManyForCache(usize),
    /// The variable with the creation time of an image is not a time.
    #[error("{0} is not a time: use seconds since 1970")]
    CreationTime(&'static str),
    /// The log filter is not valid.
    #[error(transparent)]
    Level(#[from] ParseLevelError),
}

impl UsageError {
    /// Returns [`Class::Invalid`] for every error.
    pub(super) fn class(&self) -> Class {
        Class::Invalid
    }
}
