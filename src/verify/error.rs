//! Errors of verification.

use std::fmt::Display;
use std::io;

use crate::{prefetch, volume};
use larder_layer::path::shown;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, IoError};
use larder_sys::dir::forgery;

/// A volume does not match its seal, or cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first difference that was found.
    #[error("{}{path:?}: {fault}", layer.as_ref().map(|layer| format!("layer {layer}, ")).unwrap_or_default())]
    Difference {
        /// The layer with the difference, if it is in a layer.
        layer: Option<ChainId>,
        /// Escaped path, relative to the layer or else to the volume.
        path: String,
        /// Description of the difference.
        fault: Fault,
    },
    /// The error of a separate process that verified the volume.
    #[error("{message}")]
    Apart {
        /// Class of the error.
        class: Class,
        /// Description of the error.
        message: String,
    },
    /// A layer cannot be rebuilt.
    #[error("layer {layer}: {message}")]
    Layer {
        /// Chain ID of the layer.
        layer: ChainId,
        /// Reason of the failure.
        message: String,
    },
    /// The volume has no tar-split files to verify with.
    #[error(
        "{path} was built with --no-tar-split: without tar-split files its layers cannot be verified or exported\nbuild it again without that flag, or use `attach --trust-metadata-only` to trust the layers"
    )]
    NoTarSplit {
        /// Path of the volume.
        path: String,
    },
    /// The seal cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// The prefetch list cannot be computed.
    #[error(transparent)]
    Prefetch(#[from] prefetch::Error),
    /// The file system refused an operation.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// A difference from the expected state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An expected name does not exist.
    #[error("it is missing")]
    Missing,
    /// An unexpected name exists.
    #[error("it should not exist")]
    Unexplained,
    /// The inode has another type.
    #[error("it is {found}, expected {want}")]
    Type {
        /// Expected type of the inode.
        want: &'static str,
        /// Actual type of the inode.
        found: &'static str,
    },
    /// A link or special file exists where a file or directory is expected.
    #[error("it {0}")]
    Kind(&'static str),
    /// Other users can write to it.
    #[error(
        "its mode is {0:04o}, so other users can change the volume: run chmod go-w, and build the volume again if others had access"
    )]
    Writable(u32),
    /// Another user owns the file or directory.
    #[error("it belongs to user {0}, who could change the volume: change its owner to root")]
    Foreign(u32),
    /// The file has names outside the volume.
    #[error(
        "it has {found} names, of which {want} are on the volume: it could be changed through the others"
    )]
    Names {
        /// Number of names on the volume.
        want: u64,
        /// Number of names of the inode.
        found: u64,
    },
    /// The mode differs.
    #[error("its mode is {found:04o}, expected {want:04o}")]
    Mode {
        /// Expected mode bits.
        want: u32,
        /// Actual mode bits.
        found: u32,
    },
    /// The owner or group differs.
    #[error("its owner is {}:{}, expected {}:{}", found.0, found.1, want.0, want.1)]
    Owner {
        /// Expected owner and group.
        want: (u32, u32),
        /// Actual owner and group.
        found: (u32, u32),
    },
    /// The modification time differs.
    #[error("its modification time is {found}, expected {want}")]
    Time {
        /// Expected time, in seconds and nanoseconds.
        want: String,
        /// Actual time, in seconds and nanoseconds.
        found: String,
    },
    /// The size differs.
    #[error("its size is {found} bytes, expected {want}")]
    Size {
        /// Expected size, in bytes.
        want: u64,
        /// Actual size, in bytes.
        found: u64,
    },
    /// The content differs.
    #[error("its content differs")]
    Content,
    /// The target of a symbolic link differs.
    #[error("its target is {found:?}, expected {want:?}")]
    Target {
        /// Expected target, escaped.
        want: String,
        /// Actual target, escaped.
        found: String,
    },
    /// The device number differs.
    #[error("its device is {}:{}, expected {}:{}", found.0, found.1, want.0, want.1)]
    Device {
        /// Expected major and minor number.
        want: (u32, u32),
        /// Actual major and minor number.
        found: (u32, u32),
    },
    /// An extended attribute differs.
    #[error("its attribute {0:?} is missing, unexpected or has another value")]
    Attribute(String),
    /// Names that should be the same inode are not.
    #[error("it should be the same file as {0:?}")]
    NotLinked(String),
    /// Names that should be different inodes are the same.
    #[error("it should not be the same file as {0:?}")]
    Linked(String),
    /// An index file does not match the content of `cache.json`.
    #[error("it does not follow from cache.json")]
    Index,
    /// An image is damaged, or does not match its layer.
    #[error("{0}")]
    Image(String),
    /// The prefetch list does not match the layers.
    #[error(
        "it differs from the list that this version of larder computes: the file was changed, or another version wrote it"
    )]
    Prefetch,
    /// The digest of a document differs.
    #[error("its digest is not {0}")]
    Digest(String),
    /// Runtimes cannot read the config, which an older version of Larder cached.
    #[error("{0}; the cache has the same defect")]
    Config(String),
    /// A statement in `cache.json` contradicts the images.
    #[error("cache.json is wrong: it says that {0}")]
    Statement(String),
}

impl Error {
    /// Creates the error for a difference in a layer.
    pub(super) fn layer(layer: &ChainId, path: &[u8], fault: Fault) -> Self {
        Error::Difference { layer: Some(layer.clone()), path: shown(path), fault }
    }

    /// Creates the error for a difference outside layers.
    pub(super) fn volume(path: impl Display, fault: Fault) -> Self {
        Error::Difference { layer: None, path: path.to_string(), fault }
    }

    pub(super) fn io(doing: &'static str, what: impl Display, source: io::Error) -> Self {
        Error::Io(IoError::new(doing, what, source))
    }

    /// Creates the error for a file on the volume that cannot be opened. A missing name, or one that leads
    /// elsewhere, is a difference. Any other error is one of the file system.
    pub(super) fn opening(path: impl Display, source: &io::Error) -> Self {
        match (source.kind(), forgery(source)) {
            (io::ErrorKind::NotFound, _) => Error::volume(path, Fault::Missing),
            (io::ErrorKind::InvalidData, _) => Error::volume(path, Fault::Image(source.to_string())),
            (_, Some(what)) => Error::volume(path, Fault::Kind(what)),
            (_, None) => Error::io("opening", path, copy(source)),
        }
    }

    /// Returns the class of the error, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Difference { .. } | Error::Layer { .. } => Class::Corrupt,
            Error::Apart { class, .. } => *class,
            Error::NoTarSplit { .. } => Class::Invalid,
            Error::Volume(e) => e.class(),
            Error::Prefetch(e) => e.class(),
            Error::Io(error) => error.class(FileRole::Own),
        }
    }
}

/// Copies an error of the kernel.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
