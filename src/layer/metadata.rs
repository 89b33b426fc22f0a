//! What an inode of a layer has beside its content.

use crate::sys::Timestamp;

/// Mode of a directory that neither the tar nor a lower layer describes; it belongs to root and has time 0, so that
/// the same layers always give the same tree.
pub const IMPLIED_MODE: u32 = 0o755;

/// Owner, mode, time and attributes as a tar member or a file system gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// Bytes of its extended attributes.
    pub fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len() + 16).sum()
    }

    /// What a directory gets that nothing describes.
    pub fn implied() -> Self {
        Metadata { mode: IMPLIED_MODE, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
    }
}
