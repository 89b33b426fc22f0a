//! Errors of a disk.

use std::io;

use larder_model::class::Class;
use larder_model::io_error::{FileRole, IoError, Operation, class, hint};
use larder_model::size::ByteSize;
use larder_sys::mount::MountError;

/// A disk cannot be created, used or completed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory contains files that do not belong to a disk of Larder.
    #[error(
        "{path} contains {name:?}, which does not belong to a disk of Larder: use an empty directory, or one of an earlier build"
    )]
    Foreign {
        /// Path of the directory.
        path: String,
        /// Name of such a file.
        name: String,
    },
    /// The path is not a disk, or is the disk of another job.
    #[error("{path} {fault}")]
    Other {
        /// Path of the disk.
        path: String,
        /// Description of the problem, and a hint.
        fault: String,
    },
    /// A sealed disk does not match the files next to it.
    #[error("{path} is not what was sealed: {fault}")]
    Tampered {
        /// Path of the disk.
        path: String,
        /// Description of the difference.
        fault: String,
    },
    /// An ext4 that the kernel must not read.
    #[error(
        "{path} is not mounted: {fault}\nget the disk again from its builder; if Larder did not create this ext4, mount it yourself and pass the directory"
    )]
    Unsafe {
        /// Path of the disk.
        path: String,
        /// Description of the problem.
        fault: String,
    },
    /// Another process is filling the disk.
    #[error("{path} is locked by another process: wait until it finishes")]
    Locked {
        /// Path of the disk.
        path: String,
    },
    /// A writable device is attached to the disk.
    #[error("{path} is in use as {device}: unmount and detach it first")]
    InUse {
        /// Path of the disk.
        path: String,
        /// Path of the device.
        device: String,
    },
    /// The host has not enough space for the disk.
    #[error(
        "cannot reserve the disk {path}: it needs {}, but the file system has {} left: free some space, use a smaller --size, or use --sparse",
        ByteSize(*need),
        ByteSize(*have)
    )]
    HostFull {
        /// Path of the disk.
        path: String,
        /// Requested size, in bytes.
        need: u64,
        /// Available space, in bytes.
        have: u64,
    },
    /// The host has not enough space for the images.
    #[error(
        "the images need {} on the disk {path}, but the file system of the host has {} left: free some space",
        ByteSize(*need),
        ByteSize(*have)
    )]
    HostShort {
        /// Path of the disk.
        path: String,
        /// Needed space that is not allocated yet, in bytes.
        need: u64,
        /// Available space, in bytes.
        have: u64,
    },
    /// A device or file system is smaller than the requested size.
    #[error("{path} has {}, but --size is {}: use a larger one, or a smaller --size", ByteSize(*have), ByteSize(*need))]
    TooSmall {
        /// Path of the device.
        path: String,
        /// Requested size, in bytes.
        need: u64,
        /// Actual size, in bytes.
        have: u64,
    },
    /// The requested size is too small for a disk.
    #[error("--size is {}, but the minimum size of a disk is 4 MiB", ByteSize(*size))]
    Size {
        /// Requested size, in bytes.
        size: u64,
    },
    /// A program of e2fsprogs is not installed.
    #[error(
        "{program} is not installed: volumes of kind disk and block need e2fsprogs (1.45 or newer) on the PATH"
    )]
    NoProgram {
        /// Name of the program.
        program: &'static str,
    },
    /// A program of e2fsprogs failed.
    #[error("{program} {how}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// Exit code and last output lines of the program.
        how: String,
    },
    /// The kernel refuses to mount the disk.
    #[error("cannot mount {path}: {source}")]
    Mount {
        /// Path of the disk.
        path: String,
        /// Error of the kernel.
        r#source: MountError,
    },
    /// The kernel lost writes to the disk.
    #[error("{doing} {path}: {source}; writes were lost, so the disk is not sealed: {hint}")]
    WritesLost {
        /// The operation that failed.
        doing: &'static str,
        /// Path of the disk.
        path: String,
        /// Error of the kernel.
        r#source: io::Error,
        /// Hint about the cause.
        hint: String,
    },
    /// A system call failed.
    #[error("{}{}", .0, hint(Operation::UseDisk, &.0.source))]
    Io(IoError),
    /// An error of the volume on the disk.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
}

impl Error {
    /// Returns the class of the error, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Foreign { .. } | Error::Other { .. } => Class::Conflict,
            Error::Tampered { .. } | Error::Unsafe { .. } => Class::Corrupt,
            Error::Locked { .. } | Error::InUse { .. } => Class::Busy,
            Error::HostFull { .. } | Error::HostShort { .. } | Error::TooSmall { .. } => Class::NoSpace,
            Error::NoProgram { .. } | Error::Size { .. } => Class::Invalid,
            Error::Program { .. } => Class::Internal,
            Error::Mount { source, .. } => class(&source.source, FileRole::Named),
            Error::WritesLost { source, .. } => class(source, FileRole::Named),
            Error::Io(error) => error.class(FileRole::Named),
            Error::Volume(error) => error.class(),
        }
    }
}

impl From<IoError> for Error {
    fn from(error: IoError) -> Self {
        Error::Io(error)
    }
}
