//! Faults of members that no honest layer has.

use super::limits::MAX_DEPTH;
use larder_model::size::ByteSize;

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
    #[error("its path has more than {} components", MAX_DEPTH)]
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
    /// The path alternates so often between names and `..` that resolving it would take too long.
    #[error("resolving its path takes more than {limit} lookups")]
    TooManyLookups {
        /// Maximum number of lookups.
        limit: usize,
    },
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
