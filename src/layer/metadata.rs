//! What an inode of a layer has beside its content.

use super::error::{Error, Fault};
use super::path::escape;
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

    /// Whether every file system can keep its time.
    pub fn has_common_time(&self) -> bool {
        (0..=i64::from(i32::MAX)).contains(&self.mtime.sec)
    }

    /// What a directory gets that nothing describes.
    pub fn implied() -> Self {
        Metadata { mode: IMPLIED_MODE, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
    }
}

/// Attributes that speak to overlayfs, and would change what lower layers show.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// A label of the host's policy, not of the image; podman leaves it out as well.
const SELINUX: &[u8] = b"security.selinux";

/// Refuses attributes that are hostile or that Linux cannot store, and drops those that belong to the host.
pub fn screen(path: &[u8], xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Error> {
    for (name, value) in xattrs.iter() {
        if OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
            return Err(Error::hostile(path, Fault::OverlayAttribute(escape(name))));
        }
        if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > 65536 {
            return Err(Error::hostile(path, Fault::AttributeTooLong));
        }
    }
    xattrs.retain(|(name, _)| name != SELINUX);
    xattrs.sort();
    Ok(())
}
