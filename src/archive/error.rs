//! Errors of reading an archive.

use super::{Class, Digest, Format};
use larder_model::io_error::{FileRole, IoError};
use larder_model::manifest::ManifestError;
use larder_model::size::ByteSize;

/// An archive cannot be used, or does not contain a requested image or blob.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The format is unknown, or not the requested one.
    #[error("{path} is {}", match wanted {
        None => "not an archive of a known format (oci-layout, oci-archive, docker-archive, dir): check that it is complete",
        Some(Format::OciLayout) => "not an oci-layout: give a directory that contains oci-layout and index.json",
        Some(Format::OciArchive) => "not an oci-archive: give a tar that contains oci-layout and index.json",
        Some(Format::DockerArchive) => "not a docker-archive: give a tar that contains manifest.json",
        Some(Format::Dir) => "not a dir: give a directory that contains version and manifest.json",
    })]
    Unknown {
        /// Name of the archive.
        path: String,
        /// The requested format.
        wanted: Option<Format>,
    },
    /// No image has the requested name.
    #[error("{path} contains no image of that name; it contains {have}")]
    NoImage {
        /// Name of the archive.
        path: String,
        /// Description of the images in the archive.
        have: String,
    },
    /// The images have no names, and the user gave none.
    #[error("{path} contains {have}: name it with --image, for example --image registry.example.com/app:1")]
    Unnamed {
        /// Name of the archive.
        path: String,
        /// Description of the images in the archive.
        have: String,
    },
    /// A manifest, config or layer is missing.
    #[error("{path} does not contain {digest}: it is incomplete, or was written for other platforms")]
    Absent {
        /// Name of the archive.
        path: String,
        /// Digest of the missing content.
        digest: Digest,
    },
    /// A document does not have its digest.
    #[error("{path}: the content of {want} has digest {found}")]
    Digest {
        /// Name of the archive.
        path: String,
        /// The expected digest.
        want: Digest,
        /// Digest of the content.
        found: Digest,
    },
    /// A file of the archive is malformed.
    #[error("{file} in the archive: {reason}")]
    Malformed {
        /// Path in the archive.
        file: String,
        /// Description of the problem.
        reason: String,
    },
    /// A document of the archive is malformed.
    #[error("{file} in the archive: {source}")]
    Document {
        /// Path in the archive.
        file: String,
        /// Cause from the parser.
        r#source: ManifestError,
    },
    /// The file is not a tar, or is malformed.
    #[error("reading the headers of {path}: {source}")]
    Tar {
        /// Name of the archive.
        path: String,
        /// Cause from the tar reader.
        r#source: larder_layer::tar::Error,
    },
    /// The archive cannot be decompressed.
    #[error("decompressing {path}: {source}")]
    Decode {
        /// Name of the archive.
        path: String,
        /// Cause from the decoder.
        r#source: larder_layer::decode::Error,
    },
    /// The compression format is not supported.
    #[error(
        "{path} is compressed with {program}, but only gzip and zstd are supported: decompress it first, for example {program} -dc FILE | larder import -"
    )]
    Compression {
        /// Name of the archive.
        path: String,
        /// Name of the program that decompresses it.
        program: &'static str,
    },
    /// The temporary directory has too little space.
    #[error(
        "{path} needs more than {}, half of the free space in {dir}: give the archive as an uncompressed file, or set TMPDIR",
        ByteSize(*limit)
    )]
    Spool {
        /// Name of the archive.
        path: String,
        /// The temporary directory.
        dir: String,
        /// Space that it can use, bytes.
        limit: u64,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the class, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Unknown { .. } | Error::Unnamed { .. } | Error::Compression { .. } => Class::Invalid,
            Error::NoImage { .. } => Class::NotFound,
            Error::Absent { .. } | Error::Digest { .. } | Error::Malformed { .. } => Class::Corrupt,
            Error::Document { source, .. } => source.class(),
            Error::Tar { source, .. } => source.class(),
            Error::Decode { source, .. } => source.class(),
            Error::Spool { .. } => Class::NoSpace,
            Error::Io(error) => error.class(FileRole::Given),
        }
    }
}
