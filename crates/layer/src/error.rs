//! Errors that concern one layer.

use std::io;

use super::path::shown;
use super::space::Space;
use larder_model::class::Class;
use larder_model::io_error::{self, FileRole, Operation, hint};
use larder_model::shortage::Shortage;
use larder_model::size::ByteSize;

/// The reason why a layer cannot be written to the volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A member is invalid; no honest layer contains such a member.
    #[error("member {path:?}: {fault}")]
    Hostile {
        /// Name of the member, escaped.
        path: String,
        /// The fault found in the member.
        fault: Fault,
    },
    /// The volume has reached its size cap.
    #[error("writing {path:?}: {full}")]
    Full {
        /// Name of the member, escaped.
        path: String,
        /// Bytes needed and bytes available.
        full: Shortage,
    },
    /// A system call of the file system failed.
    #[error("{doing} {path:?}: {source}{}", hint(Operation::WriteLayer, source))]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// Name of the member, escaped.
        path: String,
        /// The cause reported by the system.
        r#source: io::Error,
    },
}

/// A fault of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The path leaves the layer by `..`.
    #[error("its path leaves the layer")]
    Escapes,
    /// A path component is too long for Linux to store.
    #[error("a component of its path is longer than 255 bytes")]
    NameTooLong,
    /// The path has more components than any path that the kernel accepts.
    #[error("its path has more than {} components", super::path::MAX_DEPTH)]
    TooDeep,
    /// A name contains a NUL byte.
    #[error("its path contains a NUL byte")]
    Nul,
    /// A whiteout has no name after `.wh.`, or names the directory itself.
    #[error("it is a whiteout without a valid name")]
    WhiteoutOfNothing,
    /// A whiteout is a directory, a link or a device.
    #[error("it is a whiteout, but not a regular file")]
    WhiteoutKind,
    /// The root is not a directory.
    #[error("it is the root of the layer, but not a directory")]
    RootKind,
    /// A parent is not a directory.
    #[error("its parent {0:?} is not a directory")]
    ParentKind(String),
    /// Symbolic links form a loop.
    #[error("its path goes through more than 40 symbolic links")]
    Loop,
    /// The target of a symbolic link cannot be stored by Linux.
    #[error("the target of the symbolic link is empty, longer than 4095 bytes, or contains a NUL byte")]
    LinkText,
    /// The target of a hard link does not exist.
    #[error("it is a hard link to {0:?}, which neither this layer nor one below it contains")]
    LinkMissing(String),
    /// The target of a hard link is a directory.
    #[error("it is a hard link to the directory {0:?}")]
    LinkToDirectory(String),
    /// A member is a character device 0:0, which overlayfs uses as a whiteout.
    #[error("it is a character device 0:0, which overlayfs treats as a whiteout")]
    WhiteoutDevice,
    /// An attribute would be obeyed by overlayfs.
    #[error("it has the attribute {0:?}, which overlayfs obeys")]
    OverlayAttribute(String),
    /// The kernel rejects an attribute as malformed.
    #[error("its attribute {0:?} is malformed")]
    AttributeMalformed(String),
    /// The layer has more paths to record than the memory limit allows.
    #[error("its layer needs more than {} of memory for directories, links to lower files and replaced members", ByteSize(*limit))]
    TooMuchMemory {
        /// Memory limit, bytes.
        limit: u64,
    },
    /// The member cannot be stored in the format of the layer.
    #[error("{0}")]
    Unstorable(String),
    /// An attribute is too long for Linux to store.
    #[error("it has an attribute whose name or value is longer than Linux can store (255 bytes, 64 KiB)")]
    AttributeTooLong,
}

impl Error {
    /// Creates an error for a hostile member.
    pub fn hostile(path: &[u8], fault: Fault) -> Self {
        Error::Hostile { path: named(path), fault }
    }

    /// Creates an error for a system call that failed for a member.
    pub fn io(doing: &'static str, path: &[u8], source: io::Error) -> Self {
        Error::Io { doing, path: named(path), source }
    }

    /// Returns the same error, except if the file system was full: then the error is the shortage that
    /// `space` reports.
    #[must_use]
    pub fn explained(self, space: &dyn Space) -> Self {
        match self {
            Error::Io { doing, path, source } => {
                match out_of_room(&source).then(|| space.exhausted()).flatten() {
                    Some(full) => Error::Full { path, full },
                    None => Error::Io { doing, path, source },
                }
            }
            other => other,
        }
    }

    /// Returns the error class, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Hostile { .. } => Class::Corrupt,
            Error::Full { .. } => Class::NoSpace,
            Error::Io { source, .. } => io_class(source),
        }
    }
}

/// Formats a path for a message: escaped, and truncated to a readable length.
pub fn named(path: &[u8]) -> String {
    const READABLE: usize = 400;
    let cut = &path[..path.len().min(READABLE)];
    let dots = if cut.len() < path.len() { "…" } else { "" };
    format!("{}{dots}", shown(cut))
}

/// Returns the error class of a system call that failed on the volume.
pub fn io_class(error: &io::Error) -> Class {
    io_error::class(error, FileRole::Own)
}

/// Reports whether the file system had no free blocks, inodes or quota.
pub fn out_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds the operation and the path to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, path: &[u8]) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, path: &[u8]) -> Result<T, Error> {
        self.map_err(|source| Error::io(doing, path, source))
    }
}
