//! What keeps an entry or an image from being written. Who calls the writer knows the path and adds it.

use std::io;

use super::super::error::io_class;
use super::super::path::escape;
use larder_model::class::Class;
use larder_model::size::ByteSize;

/// An image or an entry of it cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not a name.
    #[error("its name is empty, `.` or `..`, longer than 255 bytes, or holds a slash or a NUL byte")]
    Name,
    /// There is such a name already.
    #[error("its name is taken")]
    Exists,
    /// A parent that is something else.
    #[error("its parent is no directory")]
    Parent,
    /// A second name for a directory.
    #[error("a directory has one name")]
    LinkToDirectory,
    /// Not the text of a symbolic link.
    #[error("the target of the symbolic link is empty, longer than 4095 bytes or holds a NUL byte")]
    LinkText,
    /// A device number too large for Linux.
    #[error("its device number {major}:{minor} is larger than Linux has (4095:1048575)")]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// More attributes than an inode can refer to.
    #[error("it has {count} extended attributes, EROFS keeps at most {}", super::format::MAX_SHARED)]
    TooManyXattrs {
        /// How many it has.
        count: usize,
    },
    /// An attribute of a namespace that EROFS does not know, or without a name in it.
    #[error(
        "its attribute {:?} is none that EROFS keeps (user.*, trusted.*, security.*, POSIX ACL)",
        escape(name)
    )]
    XattrName {
        /// Its name.
        name: Vec<u8>,
    },
    /// An attribute given twice.
    #[error("it has the attribute {:?} twice", escape(name))]
    XattrTwice {
        /// Its name.
        name: Vec<u8>,
    },
    /// An attribute that is too long.
    #[error("its attribute {:?} is longer than EROFS keeps (name 255 bytes, value 65535)", escape(name))]
    XattrTooLong {
        /// Its name.
        name: Vec<u8>,
    },
    /// A map of data that is none.
    #[error("its map of data is out of order, or passes the end of the file")]
    Map,
    /// Content that does not agree with what was announced.
    #[error("its content does not lie where its map of data says")]
    Content,
    /// More entries than there are numbers for them.
    #[error("the image has more entries than can be numbered")]
    TooManyEntries,
    /// An image that is too large.
    #[error("the image is larger than EROFS can be (16 TiB)")]
    TooLarge,
    /// More metadata than can be addressed.
    #[error("the image has more metadata than can be addressed (128 GiB)")]
    TooMuchMetadata,
    /// More entries than memory is set aside for.
    #[error("what must be remembered of the entries of the image is more than {}", ByteSize(*limit))]
    Memory {
        /// The limit, bytes.
        limit: u64,
    },
    /// Not a label.
    #[error("the label is longer than {} bytes or holds a NUL byte", super::options::Label::MAX)]
    Label,
    /// An image that is compared, and is not what would have been written.
    #[error("the image differs at byte {at} from what its layer gives")]
    Differs {
        /// Where it differs first, as far as it was compared.
        at: u64,
    },
    /// A fault of ours.
    #[error("fault in the writer of EROFS images: {0}")]
    Fault(&'static str),
    /// The file system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// The class, which decides about retries and the exit code.
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

/// Adds what was being done to a failed system call.
pub(super) trait Context<T> {
    fn context(self, doing: &'static str) -> Result<T, Error>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, doing: &'static str) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing, source })
    }
}
