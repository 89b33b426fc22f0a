//! tar-split: the parts of a tar that are not file contents, with which the tar can be rebuilt bit for bit.
//!
//! The format is that of vbatts/tar-split, which containers/storage stores with every layer: gzip of one JSON
//! object per line for each piece of the tar, in order (volume format, section 3).
//! ```text
//! {"type":2,"payload":"<base64: raw bytes>","position":0}
//! {"type":1,"name":"etc/passwd","size":7,"payload":"<base64: CRC-64/GO-ISO, big-endian>","position":1}
//! ```
//! A name that is not UTF-8 is stored in `name_raw` as base64. A segment ends after the header of a member,
//! because tools that read headers from it expect that. Longer segments are split, so that a reader needs
//! memory for only one piece.

mod assemble;
mod gzip;
mod read;
mod rewrite;
mod write;

pub use self::assemble::Assembler;
pub use self::read::{Error, Record, TarSplitReader};
pub use self::rewrite::rewrite;
pub use self::write::TarSplit;

/// Maximum size of a segment in one line, bytes before base64.
pub const MAX_SEGMENT: usize = 64 << 10;

/// Maximum length of an input line, bytes: a path of 64 KiB with every byte escaped, and the rest of the
/// object.
pub const MAX_LINE: usize = 512 << 10;

/// Returns a new CRC-64/GO-ISO, the checksum of Go's hash/crc64 with the ISO table.
fn crc() -> crc_fast::Digest {
    crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso)
}

#[cfg(test)]
mod tests;
