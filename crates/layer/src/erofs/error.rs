//! Errors of writing an entry or an image. The caller of the writer knows the path and adds it.

use std::io;

use super::super::error::io_class;
use super::super::path::escape;
use larder_model::class::Class;
use larder_model::size::ByteSize;

/// The reason why an image or one of its entries cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is not valid.
    #[error("its name is empty, `.` or `..`, longer than 255 bytes, or contains a slash or a NUL byte")]
    Name,
    /// An entry of this name exists already.
    #[error("its name is taken")]
    Exists,
    /// The parent is not a directory.
    #[error("its parent is not a directory")]
    Parent,
    /// A hard link to a directory was requested.
    #[error("a directory cannot have a second name")]
    LinkToDirectory,
    /// The target of a symbolic link is not valid.
    #[error("the target of the symbolic link is empty, longer than 4095 bytes, or contains a NUL byte")]
    LinkText,
    /// The device number is too large for Linux.
    #[error("its device number {major}:{minor} exceeds the maximum of Linux (4095:1048575)")]
    Device {
        /// Major number of the device.
        major: u32,
        /// Minor number of the device.
        minor: u32,
    },
    /// The inode has more attributes than it can refer to.
    #[error("it has {count} extended attributes, EROFS stores at most {}", super::format::MAX_SHARED)]
    TooManyXattrs {
        /// Number of its attributes.
        count: usize,
    },
    /// The namespace of an attribute is unknown to EROFS, or the name in it is empty.
    #[error(
        "its attribute {:?} cannot be stored in EROFS (only user.*, trusted.*, security.* and POSIX ACLs can)",
        escape(name)
    )]
    XattrName {
        /// Full name of the attribute.
        name: Vec<u8>,
    },
    /// An attribute occurs twice.
    #[error("it has the attribute {:?} twice", escape(name))]
    XattrTwice {
        /// Full name of the attribute.
        name: Vec<u8>,
    },
    /// An attribute is too long.
    #[error("its attribute {:?} is longer than EROFS can store (name 255 bytes, value 65535)", escape(name))]
    XattrTooLong {
        /// Full name of the attribute.
        name: Vec<u8>,
    },
    /// The map of a sparse file is invalid.
    #[error("its sparse map is out of order, or extends beyond the end of the file")]
    Map,
    /// The content of a sparse file does not match its map.
    #[error("its content does not match its sparse map")]
    Content,
    /// The number of entries exceeds the range of inode numbers.
    #[error("the image has more entries than inode numbers")]
    TooManyEntries,
    /// The image exceeds the maximum size.
    #[error("the image is larger than the maximum of EROFS (16 TiB)")]
    TooLarge,
    /// The metadata exceeds the addressable range.
    #[error("the image has more metadata than can be addressed (128 GiB)")]
    TooMuchMetadata,
    /// The entries need more memory than allowed.
    #[error("the entries of the image need more than {} of memory", ByteSize(*limit))]
    Memory {
        /// Memory limit, bytes.
        limit: u64,
    },
    /// The label is not valid.
    #[error("the label is longer than {} bytes, or contains a NUL byte", super::format::MAX_LABEL)]
    Label,
    /// The image in a comparison differs from the one that would be written.
    #[error("the image differs from its layer at byte {at}")]
    Differs {
        /// Offset of the first difference found, bytes.
        at: u64,
    },
    /// An internal error of the writer.
    #[error("internal error in the EROFS writer: {0}")]
    Fault(&'static str),
    /// A system call of the file system failed.
    #[error("{doing}: {source}")]
    Io {
        /// The operation that failed.
        doing: &'static str,
        /// The cause reported by the system.
        r#source: io::Error,
    },
}

impl Error {
    /// Returns the error class, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { source, .. } => io_class(source),
            Error::TooLarge | Error::TooMuchMetadata => Class::NoSpace,
            Error::Label => Class::Invalid,
            Error::Fault(_) => Class::Internal,
            _ => Class::Corrupt,
        }
    }
}

/// Adds the operation to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing, source })
    }
}
