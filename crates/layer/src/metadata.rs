//! What an inode of a layer has beside its content.

use super::error::{Error, Fault};
use super::path::escape;
use larder_sys::Timestamp;

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

/// Attributes that overlayfs obeys in every mount of a privileged process: they change what lower layers show.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Notes that an overlay mount of an unprivileged user keeps of itself. Old versions of buildah and podman pack them into the
/// layers of images that they build without root. A mount with `userxattr` (rootless podman) obeys them, any other mount shows
/// them as data: a layer that had them would be one tree to root and another to a user.
const USER_OVERLAY: &[u8] = b"user.overlay.";

/// A label of the host's policy, not of the image; podman leaves it out as well.
const SELINUX: &[u8] = b"security.selinux";

/// Refuses attributes that are hostile or that Linux cannot store, and drops those that belong to the host on which the image
/// was built.
pub fn screen(path: &[u8], xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Error> {
    xattrs.retain(|(name, _)| name != SELINUX && !name.starts_with(USER_OVERLAY));
    for (name, value) in xattrs.iter() {
        if name.starts_with(OVERLAY) {
            return Err(Error::hostile(path, Fault::OverlayAttribute(escape(name))));
        }
        if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > 65536 {
            return Err(Error::hostile(path, Fault::AttributeTooLong));
        }
    }
    xattrs.sort();
    Ok(())
}
