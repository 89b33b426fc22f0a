//! Structures and constants of the on-disk format, all little-endian (Linux, fs/erofs/erofs_fs.h).
//!
//! Only features that every kernel since 5.15 supports are used: no 48-bit addresses, no compression, no long
//! prefixes.

use larder_sys::{FileType, Timestamp};

/// Unit of data and of directories, bytes. It is the only block size that every kernel supports on every
/// architecture.
pub(super) const BLOCK: usize = 4096;

/// Alignment of inodes, bytes. A node number counts these units from the start of the metadata.
pub(super) const SLOT: usize = 32;

/// Offset of the superblock in the first block, bytes.
pub(super) const SUPERBLOCK: usize = 1024;

/// Length of the superblock, bytes.
const SUPERBLOCK_LEN: usize = 128;

/// Offset in the first block at which metadata can start, bytes.
pub(super) const FIRST_FREE: usize = SUPERBLOCK + SUPERBLOCK_LEN;

const MAGIC: u32 = 0xe0f5_e1e2;

/// Flag: the superblock has a checksum (feature_compat).
const SUPERBLOCK_CHECKSUM: u32 = 1;

/// Flag: inode times are modification times (feature_compat).
const MTIME: u32 = 2;

/// Flag: some files consist of chunks (feature_incompat).
const CHUNKED: u32 = 4;

/// Block number of a hole, or of a file without blocks.
pub(super) const NO_BLOCK: u32 = u32::MAX;

/// Maximum number of blocks: numbers have 32 bits, and the highest one denotes a hole.
pub(super) const MAX_BLOCKS: u64 = NO_BLOCK as u64;

/// Maximum length of a label, bytes. Older kernels need a NUL after it.
pub(super) const MAX_LABEL: usize = 15;

/// Maximum length of a name, bytes.
pub(super) const NAME_MAX: usize = 255;

/// Length of a directory entry without its name, bytes.
pub(super) const ENTRY: usize = 12;

/// Length of the header of an inode's attributes, bytes.
pub(super) const XATTR_HEAD: usize = 12;

/// Alignment of attributes, bytes.
pub(super) const XATTR_UNIT: usize = 4;

/// Maximum number of shared attributes of one inode.
pub(super) const MAX_SHARED: usize = 255;

/// Length of an extended inode, bytes.
pub(super) const EXTENDED: usize = 64;

/// Length of a compact inode, bytes.
pub(super) const COMPACT: usize = 32;

/// Maximum length of a tail that is stored after its inode, bytes. The block still has space for all
/// attributes that an inode can refer to, so later attributes never move the tail. A longer tail would fill
/// most of a block anyway.
pub(super) const MAX_TAIL: usize = BLOCK - EXTENDED - XATTR_HEAD - MAX_SHARED * XATTR_UNIT;
const _: () = assert!(MAX_TAIL + COMPACT < BLOCK);

/// Returns the type bits of a mode (inode(7)).
pub(super) fn type_bits(file_type: FileType) -> u16 {
    match file_type {
        FileType::Fifo => 0o010000,
        FileType::CharDevice => 0o020000,
        FileType::Directory => 0o040000,
        FileType::BlockDevice => 0o060000,
        FileType::Regular => 0o100000,
        FileType::Symlink => 0o120000,
        FileType::Socket => 0o140000,
    }
}

/// Returns the file type for a mode whose type bits were set by [`type_bits`].
pub(super) fn file_type(mode: u16) -> FileType {
    match mode & 0o170000 {
        0o010000 => FileType::Fifo,
        0o020000 => FileType::CharDevice,
        0o040000 => FileType::Directory,
        0o060000 => FileType::BlockDevice,
        0o120000 => FileType::Symlink,
        0o140000 => FileType::Socket,
        _ => FileType::Regular,
    }
}

/// File types in the order of their numbers in directory entries, from 1.
const ENTRY_TYPES: [FileType; 7] = [
    FileType::Regular,
    FileType::Directory,
    FileType::CharDevice,
    FileType::BlockDevice,
    FileType::Fifo,
    FileType::Socket,
    FileType::Symlink,
];

/// Returns the number of a file type in directory entries.
pub(super) fn entry_type(file_type: FileType) -> u8 {
    (1..).zip(ENTRY_TYPES).find(|(_, known)| *known == file_type).map_or(0, |(number, _)| number)
}

/// Returns the file type for its number in a directory entry.
pub(super) fn type_of_entry(number: u8) -> Option<FileType> {
    (1..).zip(ENTRY_TYPES).find(|(known, _)| *known == number).map(|(_, file_type)| file_type)
}

/// Encodes a device number for an inode: 12 bits of major and 20 bits of minor number. `None` if it needs
/// more.
pub(super) fn device_number(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | major << 8 | (minor & !0xff) << 12)
}

/// Decodes the major and minor number of a device.
pub(super) fn device_of(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00)
}

/// Prefixes of attribute names by number. The two ACL entries are complete names.
const NAMESPACES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Splits a name into the number of its namespace and the rest of the name.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let split = |(number, prefix): (u8, &[u8])| Some((number, name.strip_prefix(prefix)?));
    let (number, rest) = NAMESPACES.into_iter().find_map(split)?;
    let fits = namespace(number, rest).is_some() && name.len() <= NAME_MAX;
    fits.then_some((number, rest))
}

/// Returns the prefix of a namespace if `rest` is valid after it.
pub(super) fn namespace(number: u8, rest: &[u8]) -> Option<&'static [u8]> {
    let (_, prefix) = NAMESPACES.into_iter().find(|(known, _)| *known == number)?;
    let is_prefix = prefix.ends_with(b".");
    (is_prefix != rest.is_empty() && !rest.contains(&0)).then_some(prefix)
}

/// Length of an attribute without name and value, bytes.
pub(super) const XATTR_ENTRY: usize = 4;

/// Returns the lengths of name and value from the header of an attribute.
pub(super) fn entry_lengths(entry: &[u8]) -> (usize, usize) {
    (entry[0].into(), Get(entry).u16(2).into())
}

/// Decodes name and value of an attribute, which may be padded.
pub(super) fn decode_entry(entry: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (name, value) = entry_lengths(entry);
    let rest = entry.get(XATTR_ENTRY..XATTR_ENTRY + name)?;
    let value = entry.get(XATTR_ENTRY + name..XATTR_ENTRY + name + value)?;
    Some(([namespace(entry[1], rest)?, rest].concat(), value.to_vec()))
}

/// The fields of the superblock.
#[derive(Debug)]
pub(super) struct Superblock<'a> {
    pub(super) root: u16,
    pub(super) inodes: u64,
    /// Modification time of all compact inodes.
    pub(super) epoch: Timestamp,
    pub(super) blocks: u32,
    /// First block of the shared attributes.
    pub(super) xattr_block: u32,
    pub(super) uuid: &'a [u8; 16],
    pub(super) label: &'a [u8; 16],
    pub(super) chunked: bool,
}

impl Superblock<'_> {
    /// Writes the superblock into the first block. The rest of the block must be final, because the checksum
    /// covers it.
    pub(super) fn seal(&self, block: &mut [u8; BLOCK]) {
        let mut put = Put(&mut block[SUPERBLOCK..]);
        put.u32(0, MAGIC);
        put.u32(8, SUPERBLOCK_CHECKSUM | MTIME);
        put.u8(12, BLOCK.trailing_zeros().to_le_bytes()[0]);
        put.u16(14, self.root);
        put.u64(16, self.inodes);
        put.bytes(24, &self.epoch.sec.to_le_bytes());
        put.u32(32, self.epoch.nsec);
        put.u32(36, self.blocks);
        // The metadata is addressed from the start of the image.
        put.u32(40, 0);
        put.u32(44, self.xattr_block);
        put.bytes(48, self.uuid);
        put.bytes(64, self.label);
        put.u32(80, if self.chunked { CHUNKED } else { 0 });
        let sum = checksum(&block[SUPERBLOCK..]);
        Put(&mut block[SUPERBLOCK..]).u32(4, sum);
    }
}

/// The fields of the superblock that a reader needs.
#[derive(Debug)]
pub(super) struct SuperblockFields {
    pub(super) root: u16,
    pub(super) blocks: u32,
    /// Block of node number 0.
    pub(super) metadata: u32,
    pub(super) shared: u32,
    pub(super) epoch: Timestamp,
}

/// Decodes and checks the superblock in the first block; `None` if it is not of the format that Larder
/// writes.
pub(super) fn verify_superblock(block: &[u8; BLOCK]) -> Option<SuperblockFields> {
    let get = Get(&block[SUPERBLOCK..]);
    let mut checked = block[SUPERBLOCK..].to_vec();
    checked[4..8].fill(0);
    let known = get.u32(0) == MAGIC
        && get.u32(4) == checksum(&checked)
        && get.u32(8) == SUPERBLOCK_CHECKSUM | MTIME
        && usize::from(get.0[12]) == BLOCK.trailing_zeros() as usize
        && get.0[13] == 0
        && get.u32(80) & !CHUNKED == 0;
    let epoch = Timestamp { sec: i64::from_le_bytes(get.u64(24).to_le_bytes()), nsec: get.u32(32) };
    known.then(|| SuperblockFields {
        root: get.u16(14),
        blocks: get.u32(36),
        metadata: get.u32(40),
        shared: get.u32(44),
        epoch,
    })
}

/// Computes the CRC-32C of the kernel, which does not invert the result as the usual one does.
fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    let [a, b, c, d, ..] = (!crc).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The way in which the content of an inode is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Consecutive blocks.
    Plain,
    /// Consecutive blocks, with the tail after the inode.
    Inline,
    /// Chunks, whose positions are listed after the inode.
    Chunked,
}

/// An inode in its on-disk form.
#[derive(Debug)]
pub(super) struct RawInode {
    pub(super) layout: Layout,
    /// Length of the attributes that follow the inode, bytes.
    pub(super) xattr_len: usize,
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// First block, device number, or format of the chunks.
    pub(super) location: u32,
    /// Inode number for systems with 32-bit inode numbers.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Modification time; `None` for a compact inode, which has the time of the superblock.
    pub(super) mtime: Option<Timestamp>,
}

impl RawInode {
    /// Returns the encoded bytes and their length.
    pub(super) fn encode(&self) -> ([u8; EXTENDED], usize) {
        let mut bytes = [0; EXTENDED];
        let mut put = Put(&mut bytes);
        let layout = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
            Layout::Chunked => 4,
        };
        put.u16(0, layout << 1 | u16::from(self.mtime.is_some()));
        let units = self.xattr_len.saturating_sub(XATTR_HEAD) / XATTR_UNIT;
        put.low_u16(2, if self.xattr_len == 0 { 0 } else { units as u64 + 1 });
        put.u16(4, self.mode);
        match self.mtime {
            None => {
                put.low_u16(6, self.links.into());
                put.bytes(8, &self.size.to_le_bytes()[..4]);
                put.u32(16, self.location);
                put.u32(20, self.number);
                put.low_u16(24, self.uid.into());
                put.low_u16(26, self.gid.into());
                (bytes, COMPACT)
            }
            Some(mtime) => {
                put.u64(8, self.size);
                put.u32(16, self.location);
                put.u32(20, self.number);
                put.u32(24, self.uid);
                put.u32(28, self.gid);
                put.bytes(32, &mtime.sec.to_le_bytes());
                put.u32(40, mtime.nsec);
                put.u32(44, self.links);
                (bytes, EXTENDED)
            }
        }
    }
}

/// Reports whether a compact inode can store these values.
pub(super) fn fits_compact(size: u64, links: u32, uid: u32, gid: u32) -> bool {
    let short = u32::from(u16::MAX);
    size <= u32::MAX.into() && links <= short && uid <= short && gid <= short
}

/// Writes numbers at offsets.
pub(super) struct Put<'a>(pub(super) &'a mut [u8]);

impl Put<'_> {
    pub(super) fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }

    pub(super) fn u16(&mut self, at: usize, value: u16) {
        self.bytes(at, &value.to_le_bytes());
    }

    /// Writes a number that is known to fit in 16 bits.
    pub(super) fn low_u16(&mut self, at: usize, value: u64) {
        debug_assert!(value <= u16::MAX.into());
        self.bytes(at, &value.to_le_bytes()[..2]);
    }

    pub(super) fn u32(&mut self, at: usize, value: u32) {
        self.bytes(at, &value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, at: usize, value: u64) {
        self.bytes(at, &value.to_le_bytes());
    }
}

/// Reads numbers at offsets that the caller has checked.
pub(super) struct Get<'a>(pub(super) &'a [u8]);

impl Get<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[at..at + N]);
        bytes
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}
