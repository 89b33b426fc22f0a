use std::{fmt, io};

use super::block::Typeflag;
use crate::decode;
use larder_model::class::Class;

/// A layer's tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream below failed.
    #[error("reading the tar at {place}: {source}")]
    Input {
        /// Where.
        place: Place,
        /// What the stream says.
        source: io::Error,
    },
    /// A member is corrupt, hostile or of a kind that no layer may hold.
    #[error("tar {place}: {fault}")]
    Member {
        /// Where.
        place: Place,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The record of the tar could not be kept.
    #[error("writing the tar-split record of {place}: {source}")]
    Record {
        /// Where.
        place: Place,
        /// What the writer says.
        source: io::Error,
    },
}

/// Which member an error is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the member, from 0.
    pub index: u64,
    /// Its path; empty where no header has told it yet.
    pub path: Vec<u8>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Bytes of a path that an error shows.
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

/// What is wrong with a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The stream ends too early.
    #[error("the tar ends inside {0}")]
    Truncated(&'static str),
    /// The sum over the header is not the one that it states.
    #[error("the header checksum does not match")]
    Checksum,
    /// A single block of zeros followed by something else.
    #[error("a block of zeros is followed by more than zeros")]
    LoneZeroBlock,
    /// A number in a header field cannot be read.
    #[error("the header field {0} is not a number")]
    Field(&'static str),
    /// A number is outside of what its field may hold.
    #[error("{field} is {value}, outside of {range}")]
    Range {
        /// Name of the field.
        field: &'static str,
        /// What the header says.
        value: i128,
        /// What is accepted.
        range: &'static str,
    },
    /// A type that no layer may hold.
    #[error("entry type {0} is not supported")]
    Type(Typeflag),
    /// An extended header breaks the form of POSIX pax records.
    #[error("malformed PAX record: {0}")]
    Pax(&'static str),
    /// An extended header with no member that it could belong to.
    #[error("an extended header of type {0} describes no member")]
    Orphan(Typeflag),
    /// A sparse file whose map makes no sense.
    #[error("sparse map: {0}")]
    Sparse(&'static str),
    /// A name with a NUL byte, from an extended header.
    #[error("{0} has a NUL byte")]
    Nul(&'static str),
    /// Something is more than the limits allow.
    #[error("{what}: {have}, over the limit of {limit}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How much there is.
        have: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// The reader was driven in an order that would lose data; a fault of ours.
    #[error("internal error: {0}")]
    Misuse(&'static str),
}

impl Error {
    /// The class of the failure.
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
            Error::Record { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
                _ => Class::Internal,
            },
        }
    }
}
