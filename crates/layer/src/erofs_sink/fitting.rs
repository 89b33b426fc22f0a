//! Filters metadata as the kernel would. An image stores any metadata, so errors would only appear when it is
//! read.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::acl::{self, AclEffect};
use crate::erofs::split_name;
use crate::error::{Error, Fault};
use crate::metadata::Metadata;
use crate::path::escape;
use larder_model::seal::Lost;
use larder_sys::FileType;

/// Returns the metadata for an inode of this type. Records what the kernel would not store, and rejects
/// malformed attributes.
pub(super) fn fitting<'m>(
    at: &[u8],
    file_type: FileType,
    metadata: &'m Metadata,
    lost: &mut Vec<Lost>,
) -> Result<Cow<'m, Metadata>, Error> {
    if metadata.xattrs.is_empty() {
        return Ok(Cow::Borrowed(metadata));
    }
    let mut fitting = Metadata { xattrs: Vec::with_capacity(metadata.xattrs.len()), ..metadata.clone() };
    for (name, value) in &metadata.xattrs {
        match attribute_effect(file_type, name, value, fitting.mode) {
            AttributeEffect::Kept(mode) => {
                fitting.mode = mode;
                fitting.xattrs.push((name.clone(), value.clone()));
            }
            AttributeEffect::Mode(mode) => fitting.mode = mode,
            AttributeEffect::Lost => {
                lost.push(Lost { path: escape(at), what: format!("xattr {}", escape(name)) })
            }
            AttributeEffect::Malformed => {
                return Err(Error::hostile(at, Fault::AttributeMalformed(escape(name))));
            }
        }
    }
    Ok(Cow::Owned(fitting))
}

/// Returns the metadata of an inode after a link member was applied to it. As in a runtime, the link changes
/// owner and mode of the existing file, and adds its attributes to those of the file.
pub(super) fn relinked(
    at: &[u8],
    file_type: FileType,
    present: Metadata,
    link: &Metadata,
    lost: &mut Vec<Lost>,
) -> Result<Metadata, Error> {
    let fitting = fitting(at, file_type, link, lost)?;
    let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = present.xattrs.into_iter().collect();
    // A change of the owner removes file capabilities (chown(2)).
    if (present.uid, present.gid) != (link.uid, link.gid) {
        xattrs.remove(&b"security.capability"[..]);
    }
    if let Some(acl) = xattrs.get_mut(&b"system.posix_acl_access"[..]) {
        *acl = acl::with_mode(acl, link.mode);
    }
    // A given ACL that is not stored is equivalent to a mode, and replaces the previous ACL.
    if link.xattrs.iter().any(|(name, _)| name == b"system.posix_acl_access") {
        xattrs.remove(&b"system.posix_acl_access"[..]);
    }
    xattrs.extend(fitting.xattrs.iter().cloned());
    Ok(Metadata { xattrs: xattrs.into_iter().collect(), ..fitting.into_owned() })
}

/// The effect of setting an attribute.
enum AttributeEffect {
    /// The attribute is stored, and the mode becomes this one.
    Kept(u32),
    /// The attribute is equivalent to this mode.
    Mode(u32),
    /// No runtime on Linux could show the attribute.
    Lost,
    Malformed,
}

/// Returns what setxattr(2) would do with an attribute of an inode of this type.
fn attribute_effect(file_type: FileType, name: &[u8], value: &[u8], mode: u32) -> AttributeEffect {
    let has_user = matches!(file_type, FileType::Regular | FileType::Directory);
    match name {
        _ if name.starts_with(b"user.") && !has_user => AttributeEffect::Lost,
        b"user." | b"trusted." | b"security." => AttributeEffect::Malformed,
        b"system.posix_acl_access" | b"system.posix_acl_default" if file_type == FileType::Symlink => {
            match acl::entries(value) {
                Err(AclEffect::Malformed) => AttributeEffect::Malformed,
                _ => AttributeEffect::Lost,
            }
        }
        b"system.posix_acl_default" if file_type != FileType::Directory => match acl::entries(value) {
            Err(AclEffect::Unknown) => AttributeEffect::Lost,
            Ok([]) => AttributeEffect::Mode(mode),
            _ => AttributeEffect::Malformed,
        },
        b"system.posix_acl_default" => match acl::effect(value, mode) {
            AclEffect::Kept(_) => AttributeEffect::Kept(mode),
            // Unlike an access ACL, a default ACL with three entries is not equivalent to a mode.
            AclEffect::Mode(_) if value.len() > 4 => AttributeEffect::Kept(mode),
            AclEffect::Mode(_) => AttributeEffect::Mode(mode),
            AclEffect::Unknown => AttributeEffect::Lost,
            AclEffect::Malformed => AttributeEffect::Malformed,
        },
        b"system.posix_acl_access" => match acl::effect(value, mode) {
            AclEffect::Kept(mode) => AttributeEffect::Kept(mode),
            AclEffect::Mode(mode) => AttributeEffect::Mode(mode),
            AclEffect::Unknown => AttributeEffect::Lost,
            AclEffect::Malformed => AttributeEffect::Malformed,
        },
        b"security.capability" if !is_capability(value) => AttributeEffect::Malformed,
        _ if split_name(name).is_none() => AttributeEffect::Lost,
        _ => AttributeEffect::Kept(mode),
    }
}

/// Reports whether this is a file capability of version 2 or 3 (Linux, include/uapi/linux/capability.h).
fn is_capability(value: &[u8]) -> bool {
    let version = value.first_chunk().map(|head| u32::from_le_bytes(*head) & 0xff00_0000);
    matches!((version, value.len()), (Some(0x0200_0000), 20) | (Some(0x0300_0000), 24))
}
