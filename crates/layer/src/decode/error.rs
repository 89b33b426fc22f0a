use std::io;

use larder_model::class::Class;

/// A blob cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes of the blob did not come.
    #[error("reading the bytes of the blob: {0}")]
    Source(#[source] io::Error),
    /// The blob is shorter than its own framing says.
    #[error("the blob ended inside a {codec} stream, after {at} bytes: it is truncated")]
    Truncated {
        /// Name of the compression.
        codec: &'static str,
        /// Offset in the blob, bytes.
        at: u64,
    },
    /// The blob is damaged, or something follows its end.
    #[error("the blob is not a valid {codec} stream near byte {at}: {reason}")]
    Corrupt {
        /// Name of the compression.
        codec: &'static str,
        /// Offset in the blob, bytes, at which the faulty step began.
        at: u64,
        /// What the decompressor says.
        reason: String,
    },
    /// The blob inflates further than honest content does.
    #[error(
        "{input} bytes of the blob inflate to more than {output} bytes, over the limit of {max}:1: a decompression bomb"
    )]
    Bomb {
        /// Bytes of the blob read.
        input: u64,
        /// Bytes of tar they gave.
        output: u64,
        /// The limit.
        max: u64,
    },
    /// No memory for the decompressor.
    #[error("preparing the decompressor: {0}")]
    Context(#[source] io::Error),
    /// The decoder was used after it had failed.
    #[error("the blob cannot be read on after an earlier error")]
    Failed,
}

impl Error {
    /// The class of the failure.
    pub fn class(&self) -> Class {
        match self {
            Error::Source(_) => Class::Transient,
            Error::Truncated { .. } | Error::Corrupt { .. } | Error::Bomb { .. } => Class::Corrupt,
            Error::Context(_) | Error::Failed => Class::Internal,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Source(source) => source.kind(),
            Error::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            Error::Corrupt { .. } | Error::Bomb { .. } => io::ErrorKind::InvalidData,
            Error::Context(_) | Error::Failed => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
