use std::io;

use larder_model::class::Class;

/// The reason why a blob cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source failed to deliver the bytes of the blob.
    #[error("reading the bytes of the blob: {0}")]
    Source(io::Error),
    /// The blob is shorter than its own framing states.
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
        /// Offset in the blob at which the failed step began, bytes.
        at: u64,
        /// Message of the decompressor.
        reason: String,
    },
    /// The blob expands further than honest content does.
    #[error(
        "{input} bytes of the blob decompress to at least {output} bytes, over the limit of {max}:1: a decompression bomb"
    )]
    Bomb {
        /// Compressed bytes read.
        input: u64,
        /// Bytes of tar decompressed from them.
        output: u64,
        /// The maximum ratio.
        max: u64,
    },
    /// The decompressor cannot be created, for lack of memory.
    #[error("preparing the decompressor: {0}")]
    Context(io::Error),
    /// The decoder was used after it had failed.
    #[error("internal error: the decoder was used after an earlier error")]
    Failed,
}

impl Error {
    /// Returns the error class of the failure.
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
