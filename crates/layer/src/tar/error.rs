use std::{fmt, io};

use super::block::Typeflag;
use crate::decode;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};

/// The reason why a layer's tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The underlying stream failed.
    #[error("reading the tar at {position}: {source}")]
    Input {
        /// Position in the tar.
        position: Position,
        /// Error of the stream.
        r#source: io::Error,
    },
    /// A member is corrupt, hostile, or of a type that no layer may contain.
    #[error("tar {position}: {fault}")]
    Member {
        /// Position in the tar.
        position: Position,
        /// The fault found in the member.
        fault: Fault,
    },
    /// The record of the tar could not be written.
    #[error("writing the tar-split record of {position}: {source}")]
    Record {
        /// Position in the tar.
        position: Position,
        /// Error of the writer.
        r#source: io::Error,
    },
}

/// The member that an error concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Index of the member, from 0.
    pub index: u64,
    /// Path of the member; empty if no header has specified it yet.
    pub path: Vec<u8>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Maximum number of bytes of a path in an error message.
        const SHOWN: usize = 256;
        write!(f, "member {}", self.index)?;
        if !self.path.is_empty() {
            let cut = &self.path[..self.path.len().min(SHOWN)];
            let dots = if cut.len() < self.path.len() { "…" } else { "" };
            write!(f, " ({}{dots})", cut.escape_ascii())?;
        }
        Ok(())
    }
}

/// A fault of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The stream ends too early.
    #[error("the tar ends inside {0}")]
    Truncated(&'static str),
    /// The header checksum does not match the stored one.
    #[error("the header checksum does not match")]
    Checksum,
    /// A single block of zeros followed by something else.
    #[error("a single block of zeros is followed by other data")]
    LoneZeroBlock,
    /// A number in a header field cannot be read.
    #[error("the header field {0} is not a number")]
    Field(&'static str),
    /// A number is outside the range of its field.
    #[error("{field} is {value}, outside the range {range}")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// Value in the header.
        value: i128,
        /// Accepted range.
        range: &'static str,
    },
    /// The member has a type that no layer may contain.
    #[error("entry type {0} is not supported")]
    Type(Typeflag),
    /// An extended header violates the format of POSIX pax records.
    #[error("malformed PAX record: {0}")]
    Pax(&'static str),
    /// An extended header is not followed by a member that it could describe.
    #[error("an extended header of type {0} is not followed by a member")]
    Orphan(Typeflag),
    /// The map of a sparse file is invalid.
    #[error("sparse map: {0}")]
    Sparse(&'static str),
    /// A name from an extended header contains a NUL byte.
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    /// A value exceeds its limit.
    #[error("{quantity}: {have}, over the limit of {limit}")]
    Limit {
        /// Name of the limited quantity.
        quantity: &'static str,
        /// Actual value.
        have: u64,
        /// Maximum allowed value.
        limit: u64,
    },
    /// The reader was called in an order that would lose data: an internal error.
    #[error("internal error: {0}")]
    Misuse(&'static str),
}

impl Error {
    /// Returns the error class of the failure.
    pub fn class(&self) -> Class {
        match self {
            Error::Input { source, .. } => {
                match source.get_ref().and_then(|e| e.downcast_ref::<decode::Error>()) {
                    Some(error) => error.class(),
                    None => Class::Transient,
                }
            }
            Error::Member { fault: Fault::Misuse(_), .. } => Class::Internal,
            Error::Member { .. } => Class::Corrupt,
            Error::Record { source, .. } => class(source, FileRole::Own),
        }
    }
}
