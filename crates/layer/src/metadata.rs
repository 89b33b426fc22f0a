//! Metadata of an inode of a layer: owner, mode, time and extended attributes.

use super::error::{Error, Fault};
use super::path::escape;
use larder_sys::{Stat, Timestamp};

/// Name of the attribute that marks a directory as opaque for overlayfs.
pub const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// Mode of a directory that neither the tar nor a lower layer describes. Its owner is root and its time 0, so
/// that the same layers always give the same tree.
pub const IMPLIED_MODE: u32 = 0o755;

/// Owner, mode, time and extended attributes, from a tar member or a file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits and set-ID bits (07777).
    pub mode: u32,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Modification time, with nanoseconds.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// Returns the approximate memory that the extended attributes take, bytes.
    pub fn xattr_bytes(&self) -> usize {
        self.xattrs.iter().map(|(name, value)| name.len() + value.len() + 16).sum()
    }

    /// Reports whether every supported file system can store the modification time.
    pub fn has_common_time(&self) -> bool {
        (0..=i64::from(i32::MAX)).contains(&self.mtime.sec)
    }

    /// Returns the metadata of an inode on a volume, without attributes of overlayfs and SELinux.
    pub fn stored(stat: &Stat, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        xattrs.retain(|(name, _)| !name.starts_with(OVERLAY) && name != SELINUX);
        Metadata { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
    }

    /// Returns the metadata for a directory that nothing describes.
    pub fn implied() -> Self {
        Metadata { mode: IMPLIED_MODE, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
    }
}

/// Attributes that overlayfs obeys in every mount of a privileged process. They change which lower entries
/// are visible.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Attributes that an overlay mount of an unprivileged user writes for itself. Old versions of buildah and
/// podman pack them into layers that they build without root. A mount with `userxattr` (rootless podman)
/// obeys them; any other mount shows them as data. A layer with such attributes would look different to root
/// and to a user.
const USER_OVERLAY: &[u8] = b"user.overlay.";

/// A label of the host's security policy, not of the image. podman skips it as well.
const SELINUX: &[u8] = b"security.selinux";

/// Rejects attributes that are hostile or that Linux cannot store. Drops those that belong to the host on
/// which the image was built.
///
/// # Errors
/// [`Fault::OverlayAttribute`] or [`Fault::AttributeTooLong`].
pub fn filter_xattrs(path: &[u8], xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Error> {
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
