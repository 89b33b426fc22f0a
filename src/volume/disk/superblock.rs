//! What a superblock says: of an ext4 (Linux, filesystems/ext4, "The Super Block"), which volumes are filled on, or of an EROFS
//! (Linux, fs/erofs/erofs_fs.h), which one can be made into. Read before anything is mounted, so that nothing else is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use uuid::Uuid;

use super::image::Format;
use super::strict;

/// Where it lies, bytes, and how many of it are looked at.
const AT: u64 = 1024;
const LEN: usize = 1024;
const MAGIC: u16 = 0xEF53;
/// `s_state`: unmounted in order.
const CLEAN: u16 = 1;
/// `s_feature_incompat`: the number of blocks has an upper half.
const WIDE: u32 = 0x80;

/// Of an EROFS.
const EROFS: u32 = 0xE0F5_E1E2;

/// A superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Of which file system.
    pub format: Format,
    /// Size of the file system, bytes.
    pub size: u64,
    /// Size of a block, bytes.
    pub block: u64,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its label.
    pub label: String,
    /// Unmounted in order, and no error was ever found. Always so of an EROFS, which nobody writes to.
    pub clean: bool,
    /// Why an ext4 is not one that Larder made; `None` for one that may be, and for an EROFS.
    pub foreign: Option<String>,
}

impl Superblock {
    /// Reads it from a file or device; nothing where there is neither of the two.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; LEN];
        match file.read_exact_at(&mut bytes, AT) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            done => done.map(|()| Superblock::ext4(&bytes).or_else(|| Superblock::erofs(&bytes))),
        }
    }

    fn erofs(bytes: &[u8; LEN]) -> Option<Self> {
        let long = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if long(0) != EROFS {
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
        let upper = if long(0x60) & WIDE == 0 { 0 } else { u64::from(long(0x150)) };
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
    fn what_is_no_ext4_is_nothing() {
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
        assert_eq!(Superblock::ext4(&bytes), None, "more bytes than there are");
        (bytes[0x60], bytes[0x18]) = (0, 40);
        assert_eq!(Superblock::ext4(&bytes), None, "a block of any size");
        bytes[0x18] = 255;
        assert_eq!(Superblock::ext4(&bytes), None);
    }

    #[test]
    fn an_erofs() {
        let mut bytes = [0; LEN];
        assert_eq!(Superblock::erofs(&bytes), None);
        bytes[..4].copy_from_slice(&EROFS.to_le_bytes());
        assert_eq!(Superblock::erofs(&bytes), None, "a block of one byte");
        (bytes[12], bytes[36]) = (12, 9);
        bytes[64..70].copy_from_slice(b"larder");
        let found = Superblock::erofs(&bytes).unwrap();
        assert_eq!((found.size, found.block, found.label.as_str()), (9 * 4096, 4096, "larder"));
        bytes[12] = 64;
        assert_eq!(Superblock::erofs(&bytes), None);
    }
}
