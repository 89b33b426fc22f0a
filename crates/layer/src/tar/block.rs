//! The header block: v7, POSIX ustar, star and GNU formats, distinguished as in Go's archive/tar.

use std::fmt;

use super::number::{field, octal};
use super::{BLOCK, Fault};

/// A block of 512 bytes.
pub(super) type Block = [u8; BLOCK];

/// The type byte of a header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Typeflag(
    /// Value of the byte at offset 156 of the header.
    pub u8,
);

impl Typeflag {
    pub(super) const OLD_FILE: Typeflag = Typeflag(0);
    pub(super) const DIRECTORY: Typeflag = Typeflag(b'5');
    pub(super) const GNU_SPARSE: Typeflag = Typeflag(b'S');

    /// Reports whether the type never has data, regardless of its size field (as in Go's archive/tar).
    pub(super) fn is_header_only(self) -> bool {
        matches!(self.0, b'1'..=b'6')
    }

    /// Reports whether the data of the type describes another member.
    pub(super) fn is_extended(self) -> bool {
        matches!(self.0, b'x' | b'g' | b'L' | b'K')
    }
}

impl fmt::Display for Typeflag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0.escape_ascii())
    }
}

impl fmt::Debug for Typeflag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header whose checksum has been verified.
pub(super) struct Header<'a> {
    block: &'a Block,
    format: Format,
}

/// The numeric fields of a header, unchanged.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) size: i64,
    pub(super) mtime: i64,
    pub(super) major: i64,
    pub(super) minor: i64,
}

impl<'a> Header<'a> {
    /// Verifies the checksum of a header.
    ///
    /// # Errors
    /// [`Fault::Checksum`], if the stored sum equals neither the sum of unsigned bytes nor that of signed
    /// ones.
    pub(super) fn new(block: &'a Block) -> Result<Self, Fault> {
        let stated = octal(&block[148..156]).ok_or(Fault::Checksum)?;
        let (unsigned, signed) = checksums(block);
        if stated != unsigned && stated != signed {
            return Err(Fault::Checksum);
        }
        let format = match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if block[508..] == *b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        };
        Ok(Header { block, format })
    }

    pub(super) fn typeflag(&self) -> Typeflag {
        Typeflag(self.block[156])
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.format == Format::Gnu
    }

    /// Returns the size of the following data according to this header; `0` for types without data.
    pub(super) fn data_size(&self) -> Result<i64, Fault> {
        if self.typeflag().is_header_only() {
            return Ok(0);
        }
        field(&self.block[124..136], "size")
    }

    pub(super) fn numbers(&self) -> Result<Numbers, Fault> {
        let device = |range, name| match self.format {
            Format::V7 => Ok(0),
            _ => field(&self.block[range], name),
        };
        Ok(Numbers {
            mode: field(&self.block[100..108], "mode")?,
            uid: field(&self.block[108..116], "uid")?,
            gid: field(&self.block[116..124], "gid")?,
            size: field(&self.block[124..136], "size")?,
            mtime: field(&self.block[136..148], "mtime")?,
            major: device(329..337, "devmajor")?,
            minor: device(337..345, "devminor")?,
        })
    }

    /// Returns the name, with the prefix if the format has one.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = c_string(&self.block[..100]);
        let prefix = match self.format {
            Format::V7 => &[],
            Format::Ustar => c_string(&self.block[345..500]),
            Format::Star => c_string(&self.block[345..476]),
            Format::Gnu => self.misplaced_prefix(),
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn link_target(&self) -> Vec<u8> {
        c_string(&self.block[157..257]).to_vec()
    }

    /// Returns the prefix of a GNU header that has one. GNU headers contain times at this offset, but Go
    /// before 1.8 wrote GNU magic with a ustar prefix, and such layers exist. As in Go, a value that is not a
    /// time is a prefix.
    fn misplaced_prefix(&self) -> &'a [u8] {
        let times = [&self.block[345..357], &self.block[357..369]];
        if times.iter().all(|time| time[0] == 0 || field(time, "time").is_ok()) {
            return &[];
        }
        let prefix = c_string(&self.block[345..500]);
        if prefix.is_ascii() { prefix } else { &[] }
    }

    /// Returns the fields of an old GNU sparse header: logical size, four regions, and whether an extension
    /// block follows.
    pub(super) fn gnu_sparse(&self) -> (&'a [u8], &'a [u8], bool) {
        (&self.block[483..495], &self.block[386..482], self.block[482] != 0)
    }
}

/// Returns the bytes up to the first NUL.
pub(super) fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// Returns the sums over the header with its checksum field treated as spaces: of unsigned bytes (POSIX) and
/// of signed ones (Sun).
fn checksums(block: &Block) -> (i64, i64) {
    const FIELD: std::ops::Range<usize> = 148..156;
    let mut block = *block;
    block[FIELD].fill(b' ');
    // The sum of 256 bytes fits in 16 bits, of which a vector has twice as many as of 32.
    let (halves, _) = block.as_chunks::<256>();
    let sum = |of: fn(u8) -> u16| -> i64 {
        halves.iter().map(|half| i64::from(half.iter().map(|b| of(*b)).sum::<u16>())).sum()
    };
    let (unsigned, negative) = (sum(u16::from), sum(|b| u16::from(b >> 7)));
    (unsigned, unsigned - 256 * negative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_all_bytes() {
        assert_eq!(checksums(&[0; BLOCK]), (8 * 32, 8 * 32));
        assert_eq!(checksums(&[1; BLOCK]), (504 + 8 * 32, 504 + 8 * 32));
        assert_eq!(checksums(&[0xff; BLOCK]), (504 * 255 + 8 * 32, 8 * 32 - 504));
        assert_eq!(checksums(&[0x80; BLOCK]), (504 * 128 + 8 * 32, 8 * 32 - 504 * 128));
    }
}
