//! tar-split: what of a tar is not the content of its files, so that the tar can be built again bit for bit.
//!
//! The format is that of vbatts/tar-split, which containers/storage keeps beside every layer: gzip of one JSON object
//! in a line for each piece of the tar, in its order (volume format, section 3).
//! ```text
//! {"type":2,"payload":"<base64: raw bytes>","position":0}
//! {"type":1,"name":"etc/passwd","size":7,"payload":"<base64: CRC-64/GO-ISO, big-endian>","position":1}
//! ```
//! A name that is not UTF-8 stands in `name_raw` as base64. A segment ends with the header of a member, as tools
//! expect that read headers from it; longer ones are cut, so that nobody needs to hold more than one piece.

mod assemble;
mod read;
mod rewrite;
mod write;

pub use self::assemble::Assembler;
pub use self::read::{Error, Record, TarSplitReader};
pub use self::rewrite::rewrite;
pub use self::write::TarSplit;

/// Longest segment that is written in one line, bytes before base64.
pub const MAX_SEGMENT: usize = 64 << 10;

/// Longest line that is read, bytes: a path of 64 KiB with every byte escaped, with room for the rest of the object.
pub const MAX_LINE: usize = 512 << 10;

/// A running CRC-64/GO-ISO, the checksum of Go's hash/crc64 with the ISO table.
fn crc() -> crc_fast::Digest {
    crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso)
}

#[cfg(test)]
mod tests;
