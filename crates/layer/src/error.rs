//! What can go wrong with one layer.

use std::io;

use nix::errno::Errno;

use super::path::shown;
use super::space::Space;
use larder_model::class::Class;
use larder_model::shortage::Shortage;
use larder_model::size::ByteSize;

/// A layer cannot be put on the volume.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A member is something that no honest layer holds.
    #[error("member {path:?}: {fault}")]
    Hostile {
        /// Name of the member, escaped.
        path: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The cap of the volume is reached.
    #[error("writing {path:?}: {full}")]
    Full {
        /// Name of the member, escaped.
        path: String,
        /// Need and have.
        full: Shortage,
    },
    /// The file system refused.
    #[error("{doing} {path:?}: {source}{}", remedy(source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Name of the member, escaped.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What is wrong with a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// `..` leads out of the layer.
    #[error("its path leaves the layer")]
    Escapes,
    /// A component that Linux cannot store.
    #[error("a component of its path is longer than 255 bytes")]
    NameTooLong,
    /// More components than any path that the kernel takes.
    #[error("its path has more than {} components", super::path::MAX_DEPTH)]
    TooDeep,
    /// NUL in a name.
    #[error("its path holds a NUL byte")]
    Nul,
    /// `.wh.` without a name, or one that means a directory itself.
    #[error("it is a whiteout of nothing")]
    WhiteoutOfNothing,
    /// A whiteout that is a directory, a link or a device.
    #[error("it is a whiteout, but no regular file")]
    WhiteoutKind,
    /// The root as something else than a directory.
    #[error("it stands for the root of the layer, but is no directory")]
    RootKind,
    /// A parent that is a file.
    #[error("its parent {0:?} is no directory")]
    ParentKind(String),
    /// Symbolic links in a circle.
    #[error("its path goes through more than 40 symbolic links")]
    Loop,
    /// A symbolic link that Linux cannot store.
    #[error("the target of the symbolic link is empty, longer than 4095 bytes or holds a NUL byte")]
    LinkText,
    /// A hard link whose target is nowhere.
    #[error("it is a hard link to {0:?}, which neither this layer nor one below it contains")]
    LinkMissing(String),
    /// A hard link to a directory.
    #[error("it is a hard link to the directory {0:?}")]
    LinkToDirectory(String),
    /// A character device 0:0, overlayfs's own whiteout.
    #[error("it is a character device 0:0, which overlayfs takes for a whiteout")]
    WhiteoutDevice,
    /// An attribute that overlayfs obeys.
    #[error("it has the attribute {0:?}, which overlayfs obeys")]
    OverlayAttribute(String),
    /// An attribute that the kernel finds malformed.
    #[error("its attribute {0:?} is malformed")]
    AttributeMalformed(String),
    /// More paths than memory is set aside for.
    #[error("what must be remembered of directories, links to lower files and replaced members is more than {}", ByteSize(*limit))]
    TooMuchToRemember {
        /// The limit, bytes.
        limit: u64,
    },
    /// Something that the form of the layer cannot hold.
    #[error("{0}")]
    Unstorable(String),
    /// An attribute that Linux cannot store.
    #[error("it has an attribute whose name or value is longer than Linux stores (255 bytes, 64 KiB)")]
    AttributeTooLong,
}

impl Error {
    /// A hostile member.
    pub fn hostile(path: &[u8], fault: Fault) -> Self {
        Error::Hostile { path: named(path), fault }
    }

    /// A system call that failed for a member.
    pub fn io(doing: &'static str, path: &[u8], source: io::Error) -> Self {
        Error::Io { doing, path: named(path), source }
    }

    /// The same error, but where the file system had no room left, as what `space` says is lacking.
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

    /// The class, which decides about retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Hostile { .. } => Class::Corrupt,
            Error::Full { .. } => Class::NoSpace,
            Error::Io { source, .. } => io_class(source),
        }
    }
}

/// A path for a message: escaped, and cut where nobody reads on.
pub fn named(path: &[u8]) -> String {
    const READABLE: usize = 400;
    let cut = &path[..path.len().min(READABLE)];
    let dots = if cut.len() < path.len() { "…" } else { "" };
    format!("{}{dots}", shown(cut))
}

/// The class of a failed system call on the volume.
pub fn io_class(error: &io::Error) -> Class {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::TooManyLinks => {
            Class::NoSpace
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Class::Denied,
        _ => Class::Internal,
    }
}

/// Whether the file system refused for want of blocks, inodes or quota.
pub fn out_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC) => {
            " (no block or no inode is left: use a larger file system, or one with more inodes)"
        }
        Some(Errno::EMLINK) => {
            " (the file system gives one file no more names, ext4 65,000: use xfs, or --layer-format erofs)"
        }
        Some(Errno::EDQUOT) => " (a disk quota is reached)",
        Some(Errno::EOPNOTSUPP) => " (the file system cannot store this; ext4 and xfs can)",
        _ => "",
    }
}

/// Adds what was being done to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str, path: &[u8]) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str, path: &[u8]) -> Result<T, Error> {
        self.map_err(|source| Error::io(doing, path, source))
    }
}
