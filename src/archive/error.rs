//! Why an archive cannot be used.

use std::io;

use super::{Class, Digest, Format};
use larder_model::manifest::ManifestError;
use larder_model::size::ByteSize;

/// An archive cannot be used, or has not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing that we know.
    #[error("{path} is {}", match wanted {
        None => "neither an OCI layout, nor a tar of one, nor what docker save or skopeo (dir:) writes: is it whole?",
        Some(Format::OciLayout) => "no OCI layout: a directory with oci-layout and index.json in it is wanted",
        Some(Format::OciArchive) => "no oci-archive: a tar with oci-layout and index.json in it is wanted",
        Some(Format::DockerArchive) => "no docker-archive: a tar with manifest.json in it is wanted",
        Some(Format::Dir) => "no dir: a directory with version and manifest.json in it is wanted",
    })]
    Unknown {
        /// The archive.
        path: String,
        /// What the user says it is.
        wanted: Option<Format>,
    },
    /// Another image was asked for.
    #[error("{path} has no image of that name; it has {have}")]
    NoImage {
        /// The archive.
        path: String,
        /// What there is.
        have: String,
    },
    /// Nothing says what its images are called.
    #[error("{path} has {have}: say what to call it with --image, as in --image registry.example.com/app:1")]
    Unnamed {
        /// The archive.
        path: String,
        /// What there is.
        have: String,
    },
    /// A manifest, config or layer that it should have.
    #[error("{path} has no {digest}: it was written for other platforms, or in part")]
    Absent {
        /// The archive.
        path: String,
        /// What is missing.
        digest: Digest,
    },
    /// A document is not what its name says.
    #[error("{path}: what is called {want} has digest {found}")]
    Digest {
        /// The archive.
        path: String,
        /// Digest that it is called by.
        want: Digest,
        /// Digest of its bytes.
        found: Digest,
    },
    /// A file of it is malformed.
    #[error("{file} of the archive: {reason}")]
    Malformed {
        /// Which.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A document of it is malformed.
    #[error("{file} of the archive: {source}")]
    Document {
        /// Which.
        file: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// It is no tar, or one with nonsense in it.
    #[error("reading the headers of {path}: {source}")]
    Tar {
        /// The archive.
        path: String,
        /// What is wrong.
        source: larder_layer::tar::Error,
    },
    /// It cannot be decompressed.
    #[error("decompressing {path}: {source}")]
    Decode {
        /// The archive.
        path: String,
        /// What is wrong.
        source: larder_layer::decode::Error,
    },
    /// It is compressed in a way that this program does not read.
    #[error(
        "{path} is compressed with {program}, and Larder reads gzip and zstd: decompress it first, as in {program} -dc FILE | larder import -"
    )]
    Compression {
        /// The archive.
        path: String,
        /// What decompresses it.
        program: &'static str,
    },
    /// It does not fit where it has to be kept for a while.
    #[error(
        "{path} needs more than {}, half of what is free in {dir}: give the archive as an uncompressed file, or set TMPDIR",
        ByteSize(*limit)
    )]
    Spool {
        /// The archive.
        path: String,
        /// Where.
        dir: String,
        /// The limit, bytes.
        limit: u64,
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
            Error::Unknown { .. } | Error::Unnamed { .. } | Error::Compression { .. } => Class::Invalid,
            Error::NoImage { .. } => Class::NotFound,
            Error::Absent { .. } | Error::Digest { .. } | Error::Malformed { .. } => Class::Corrupt,
            Error::Document { source, .. } => source.class(),
            Error::Tar { source, .. } => source.class(),
            Error::Decode { source, .. } => source.class(),
            Error::Spool { .. } => Class::NoSpace,
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::InvalidInput => Class::Invalid,
                io::ErrorKind::PermissionDenied => Class::Denied,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
                // A file that became shorter while it was read.
                io::ErrorKind::UnexpectedEof => Class::Corrupt,
                _ => Class::Internal,
            },
        }
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
