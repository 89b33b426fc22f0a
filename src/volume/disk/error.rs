//! What can go wrong with a disk.

use std::io;

use nix::errno::Errno;

use larder_model::class::Class;
use larder_model::size::ByteSize;
use larder_sys::mount::MountError;

/// A disk cannot be made, used or finished.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory holds files that are not of a disk of ours.
    #[error(
        "{path} holds {name:?}, which is not of a disk of Larder's: give an empty directory, or one of an earlier build"
    )]
    Foreign {
        /// The directory.
        path: String,
        /// A name found in it.
        name: String,
    },
    /// What stands in the place of a disk is none, or another job's.
    #[error("{path} {fault}")]
    Other {
        /// The disk.
        path: String,
        /// What it is, and the remedy.
        fault: String,
    },
    /// A sealed disk is not what is said beside it.
    #[error("{path} is not what was sealed: {fault}")]
    Tampered {
        /// The disk.
        path: String,
        /// What differs.
        fault: String,
    },
    /// An ext4 that the kernel should not read.
    #[error(
        "{path} is not mounted: {fault}\nget the disk again from whoever built it; mount an ext4 of another maker yourself and give the directory"
    )]
    Unsafe {
        /// The disk.
        path: String,
        /// What is wrong with it.
        fault: String,
    },
    /// Somebody fills it.
    #[error("{path} is locked by another process: wait until it is done")]
    Locked {
        /// The disk.
        path: String,
    },
    /// A device that can change it is attached to it.
    #[error("{path} is in use as {device}: unmount and detach that first")]
    InUse {
        /// The disk.
        path: String,
        /// The device.
        device: String,
    },
    /// The host has no room for it.
    #[error(
        "reserving the disk {path}: it needs {}, the file system has {} left: free some, ask for a smaller --size, or give --sparse",
        ByteSize(*need),
        ByteSize(*have)
    )]
    HostFull {
        /// The disk.
        path: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes left.
        have: u64,
    },
    /// A device or file system is smaller than what was asked for.
    #[error("{path} has {}, --size asks for {}: give a larger one, or a smaller --size", ByteSize(*have), ByteSize(*need))]
    TooSmall {
        /// Which.
        path: String,
        /// Bytes asked for.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// No disk is so small.
    #[error("--size asks for {}: a disk has at least 4 MiB", ByteSize(*size))]
    Size {
        /// Bytes asked for.
        size: u64,
    },
    /// A program of e2fsprogs is not there.
    #[error(
        "{program} is not there: a volume of kind disk or block needs e2fsprogs (1.45 or newer) on the PATH"
    )]
    NoProgram {
        /// Which.
        program: &'static str,
    },
    /// A program of e2fsprogs failed.
    #[error("{program} {how}")]
    Program {
        /// Which.
        program: &'static str,
        /// Its exit code and last words.
        how: String,
    },
    /// The kernel does not mount it.
    #[error("mounting {path}: {source}")]
    Mount {
        /// What.
        path: String,
        /// Why.
        source: MountError,
    },
    /// The kernel lost writes to it.
    #[error("{doing} {path}: {source}: writes were lost, so it is not sealed; {hint}")]
    WritesLost {
        /// What was being done.
        doing: &'static str,
        /// The disk.
        path: String,
        /// What the kernel said.
        source: io::Error,
        /// What may help.
        hint: String,
    },
    /// A call failed.
    #[error("{doing} {what}: {source}{}", remedy(source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The volume on it.
    #[error(transparent)]
    Volume(#[from] crate::volume::Error),
}

impl Error {
    /// The class, which decides about retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Foreign { .. } | Error::Other { .. } => Class::Conflict,
            Error::Tampered { .. } | Error::Unsafe { .. } => Class::Corrupt,
            Error::Locked { .. } | Error::InUse { .. } => Class::Busy,
            Error::HostFull { .. } | Error::TooSmall { .. } => Class::NoSpace,
            Error::NoProgram { .. } | Error::Size { .. } => Class::Invalid,
            Error::Program { .. } => Class::Internal,
            Error::Mount { source, .. } => class_of(&source.source),
            Error::WritesLost { source, .. } | Error::Io { source, .. } => class_of(source),
            Error::Volume(error) => error.class(),
        }
    }
}

fn class_of(error: &io::Error) -> Class {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EDQUOT) => Class::NoSpace,
        Some(Errno::EPERM | Errno::EACCES | Errno::EROFS) => Class::Denied,
        Some(Errno::ENOENT | Errno::ENOTDIR) => Class::NotFound,
        Some(Errno::EBUSY) => Class::Busy,
        // The superblock, the group descriptors or their sums are wrong.
        Some(Errno::EUCLEAN | Errno::EBADMSG) => Class::Corrupt,
        // A view of a volume that has links or special files at its top.
        _ if error.kind() == io::ErrorKind::InvalidData => Class::Corrupt,
        _ => Class::Internal,
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => " (disks need root, with CAP_SYS_ADMIN and loop devices)",
        _ => "",
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
