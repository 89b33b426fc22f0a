//! Superblocks of ext4 (Linux, filesystems/ext4, "The Super Block"), on which volumes are filled, and of
//! EROFS (Linux, fs/erofs/erofs_fs.h), to which a volume can be converted. They are read before anything is
//! mounted, so that no other file system is ever mounted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use uuid::Uuid;

use super::image::Format;
use super::strict;

/// Offset of the superblock in bytes. `LEN` is the number of bytes to read.
const OFFSET: u64 = 1024;
const LEN: usize = 1024;
const MAGIC: u16 = 0xEF53;
/// `s_state`: unmounted cleanly.
const CLEAN: u16 = 1;
/// `s_feature_incompat`: the number of blocks has an upper half.
const FEATURE_64BIT: u32 = 0x80;

/// Magic number of EROFS.
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;

/// The relevant fields of a superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Type of the file system.
    pub format: Format,
    /// Size of the file system, in bytes.
    pub size: u64,
    /// Block size, in bytes.
    pub block: u64,
    /// UUID of the file system.
    pub uuid: Uuid,
    /// Label of the file system.
    pub label: String,
    /// `true` if the file system was unmounted cleanly and never had an error. Always `true` for EROFS, which
    /// is never written to.
    pub clean: bool,
    /// The difference from an ext4 of Larder; `None` if there is none, and for EROFS.
    pub foreign: Option<String>,
}

impl Superblock {
    /// Reads the superblock of a file or device; `None` if it is neither ext4 nor EROFS.
    ///
    /// # Errors
    /// Those of pread(2).
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        match file.read_exact_at(&mut bytes, OFFSET) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            done => done.map(|()| Superblock::ext4(&bytes).or_else(|| Superblock::erofs(&bytes))),
        }
    }

    fn erofs(bytes: &[u8; LEN]) -> Option<Self> {
        let long = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if long(0) != EROFS_MAGIC {
            return None;
        }
        let block = 1u64.checked_shl(bytes[12].into()).filter(|block| (512..=65536).contains(block))?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[48..64]);
        let label = bytes[64..80].split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Superblock {
            format: Format::Erofs,
            size: u64::from(long(36)) * block,
            block,
            uuid: Uuid::from_bytes(uuid),
            label: String::from_utf8_lossy(label).into_owned(),
            clean: true,
            foreign: None,
        })
    }

    fn ext4(bytes: &[u8; LEN]) -> Option<Self> {
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from(short(at)) | u32::from(short(at + 2)) << 16;
        if short(0x38) != MAGIC {
            return None;
        }
        let block = 1024u64.checked_shl(long(0x18)).filter(|block| (1024..=65536).contains(block))?;
        let upper = if long(0x60) & FEATURE_64BIT == 0 { 0 } else { u64::from(long(0x150)) };
        let blocks = u64::from(long(0x4)) | upper << 32;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[0x68..0x78]);
        let label = bytes[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Superblock {
            format: Format::Ext4,
            size: blocks.checked_mul(block)?,
            block,
            uuid: Uuid::from_bytes(uuid),
            label: String::from_utf8_lossy(label).into_owned(),
            // `s_error_count`
            clean: short(0x3A) == CLEAN && long(0x194) == 0,
            foreign: strict::fault(bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ext4_is_parsed() {
        let mut bytes = [0; LEN];
        assert_eq!(Superblock::ext4(&bytes), None);
        (bytes[0x38], bytes[0x39]) = (0x53, 0xEF);
        bytes[0x18] = 2;
        bytes[0x4] = 9;
        bytes[0x3A] = 1;
        let found = Superblock::ext4(&bytes).unwrap();
        assert_eq!((found.size, found.block, found.clean, found.label.as_str()), (9 * 4096, 4096, true, ""));
        bytes[0x194] = 1;
        assert!(!Superblock::ext4(&bytes).unwrap().clean, "an error was found");
        bytes[0x60] = 0x80;
        bytes[0x150..0x154].fill(0xff);
        assert_eq!(Superblock::ext4(&bytes), None, "a size that overflows");
        (bytes[0x60], bytes[0x18]) = (0, 40);
        assert_eq!(Superblock::ext4(&bytes), None, "a block of an invalid size");
        bytes[0x18] = 255;
        assert_eq!(Superblock::ext4(&bytes), None);
    }

    #[test]
    fn an_erofs() {
        let mut bytes = [0; LEN];
        assert_eq!(Superblock::erofs(&bytes), None);
        bytes[..4].copy_from_slice(&EROFS_MAGIC.to_le_bytes());
        assert_eq!(Superblock::erofs(&bytes), None, "a block of one byte");
        (bytes[12], bytes[36]) = (12, 9);
        bytes[64..70].copy_from_slice(b"larder");
        let found = Superblock::erofs(&bytes).unwrap();
        assert_eq!((found.size, found.block, found.label.as_str()), (9 * 4096, 4096, "larder"));
        bytes[12] = 64;
        assert_eq!(Superblock::erofs(&bytes), None);
    }
}
