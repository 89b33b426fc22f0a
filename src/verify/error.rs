//! What verification finds.

use std::fmt::Display;
use std::io;

use crate::prefetch;
use crate::volume;
use larder_layer::path::shown;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_sys::dir::forgery;

/// A volume is not what its seal says, or cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The first difference.
    #[error("{}{path:?}: {fault}", layer.as_ref().map(|layer| format!("layer {layer}, ")).unwrap_or_default())]
    Difference {
        /// The layer, where one is to blame.
        layer: Option<ChainId>,
        /// Path, relative to the layer or else to the volume, escaped.
        path: String,
        /// What differs.
        fault: Fault,
    },
    /// A process of its own verified the volume, and this is what it found.
    #[error("{message}")]
    Apart {
        /// Class of its error.
        class: Class,
        /// What it found.
        message: String,
    },
    /// A layer cannot be rebuilt.
    #[error("layer {layer}: {message}")]
    Layer {
        /// The layer.
        layer: ChainId,
        /// Why.
        message: String,
    },
    /// There is nothing to verify with.
    #[error(
        "{path} was built with --no-tar-split: without tar-split files its layers cannot be proven or exported\nbuild it again without that flag; `attach --trust-metadata-only` believes the layers"
    )]
    NoTarSplit {
        /// The volume.
        path: String,
    },
    /// The seal cannot be read or trusted.
    #[error(transparent)]
    Volume(#[from] volume::Error),
    /// What starts read first cannot be found out.
    #[error(transparent)]
    Prefetch(#[from] prefetch::Error),
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

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A name that should be there.
    #[error("it is missing")]
    Missing,
    /// A name that nothing explains.
    #[error("nothing explains it")]
    Unexplained,
    /// Another type of inode.
    #[error("it is {found}, want {want}")]
    Type {
        /// Type wanted.
        want: &'static str,
        /// Type found.
        found: &'static str,
    },
    /// A link or a special file in the place of a file or directory.
    #[error("it {0}")]
    Kind(&'static str),
    /// Others may write to it.
    #[error(
        "its mode is {0:04o}, which lets others change the volume: chmod go-w, and build the volume again if others had access"
    )]
    Writable(u32),
    /// It belongs to another user.
    #[error("it belongs to user {0}, who could change the volume: give it to root")]
    Foreign(u32),
    /// It has names outside of the volume.
    #[error("it has {found} names, {want} of them on the volume: through the others it could be changed")]
    Names {
        /// Names on the volume.
        want: u64,
        /// Names that the inode has.
        found: u64,
    },
    /// Another mode.
    #[error("its mode is {found:04o}, want {want:04o}")]
    Mode {
        /// Mode wanted.
        want: u32,
        /// Mode found.
        found: u32,
    },
    /// Another owner or group.
    #[error("its owner is {}:{}, want {}:{}", found.0, found.1, want.0, want.1)]
    Owner {
        /// Owner and group wanted.
        want: (u32, u32),
        /// Owner and group found.
        found: (u32, u32),
    },
    /// Another modification time.
    #[error("its modification time is {found}, want {want}")]
    Time {
        /// Time wanted, seconds and nanoseconds.
        want: String,
        /// Time found.
        found: String,
    },
    /// Another size.
    #[error("its size is {found} bytes, want {want}")]
    Size {
        /// Size wanted.
        want: u64,
        /// Size found.
        found: u64,
    },
    /// Other content.
    #[error("its content differs")]
    Content,
    /// Another target of a symbolic link.
    #[error("its target is {found:?}, want {want:?}")]
    Target {
        /// Target wanted, escaped.
        want: String,
        /// Target found, escaped.
        found: String,
    },
    /// Another device number.
    #[error("its device is {}:{}, want {}:{}", found.0, found.1, want.0, want.1)]
    Device {
        /// Device wanted.
        want: (u32, u32),
        /// Device found.
        found: (u32, u32),
    },
    /// Another extended attribute.
    #[error("its attribute {0:?} is missing, unexplained or has another value")]
    Attribute(String),
    /// Names that should, or should not, be one inode.
    #[error("it should be one file with {0:?} and is not")]
    NotLinked(String),
    /// Names that are one inode and should not be.
    #[error("it is one file with {0:?} and should not be")]
    Linked(String),
    /// An index file that does not follow from the content.
    #[error("it does not follow from cache.json")]
    Index,
    /// An image that is damaged, or not what its layer gives.
    #[error("{0}")]
    Image(String),
    /// A list that does not follow from the layers.
    #[error(
        "it is not what this larder finds in the images: the file was changed, or another version wrote it"
    )]
    Prefetch,
    /// A digest that does not hold.
    #[error("its digest is not {0}")]
    Digest(String),
    /// A config that runtimes cannot read: an older Larder cached it.
    #[error("{0}, and the cache, too")]
    Config(String),
    /// A statement of cache.json that the images do not bear out.
    #[error("cache.json says {0}, and that is not so")]
    Statement(String),
}

impl Error {
    /// A difference in a layer.
    pub(super) fn layer(layer: &ChainId, path: &[u8], fault: Fault) -> Self {
        Error::Difference { layer: Some(layer.clone()), path: shown(path), fault }
    }

    /// A difference outside of layers.
    pub(super) fn volume(path: impl Display, fault: Fault) -> Self {
        Error::Difference { layer: None, path: path.to_string(), fault }
    }

    pub(super) fn io(doing: &'static str, what: impl Display, source: io::Error) -> Self {
        Error::Io { doing, what: what.to_string(), source }
    }

    /// Something on the volume cannot be opened. A name that is gone, or that leads elsewhere, is a difference; anything else is the
    /// file system's refusal.
    pub(super) fn opening(path: impl Display, source: &io::Error) -> Self {
        match (source.kind(), forgery(source)) {
            (io::ErrorKind::NotFound, _) => Error::volume(path, Fault::Missing),
            (io::ErrorKind::InvalidData, _) => Error::volume(path, Fault::Image(source.to_string())),
            (_, Some(what)) => Error::volume(path, Fault::Kind(what)),
            (_, None) => Error::io("opening", path, copy(source)),
        }
    }

    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Difference { .. } | Error::Layer { .. } => Class::Corrupt,
            Error::Apart { class, .. } => *class,
            Error::NoTarSplit { .. } => Class::Invalid,
            Error::Volume(e) => e.class(),
            Error::Prefetch(e) => e.class(),
            Error::Io { source, .. } => larder_layer::error::io_class(source),
        }
    }
}

/// The same error of the kernel once more.
fn copy(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
