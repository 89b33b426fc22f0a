//! Checks POSIX ACLs as the kernel does (Linux, fs/posix_acl.c). No kernel rejects a malformed ACL when an
//! image is written; a kernel only fails on it when the image is read.

/// Version of the ACL format (Linux, include/uapi/linux/posix_acl_xattr.h).
const VERSION: u32 = 2;

/// The effect of setting an ACL on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AclEffect {
    /// The ACL is stored, and the file gets this mode.
    Kept(u32),
    /// The ACL is equivalent to a mode, which the file gets instead.
    Mode(u32),
    /// Linux does not support this format of ACL.
    Unknown,
    /// The ACL is malformed.
    Malformed,
}

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Returns the entries of the ACL `value`, after the checks that the kernel makes independently of the file
/// (`posix_acl_from_xattr`).
pub(super) fn entries(value: &[u8]) -> Result<&[[u8; 8]], AclEffect> {
    let (head, entries) = value.split_first_chunk().ok_or(AclEffect::Malformed)?;
    if u32::from_le_bytes(*head) != VERSION {
        return Err(AclEffect::Unknown);
    }
    let (entries, []) = entries.as_chunks::<8>() else { return Err(AclEffect::Malformed) };
    let is_known = |[low, high, _, _, id @ ..]: &[u8; 8]| match u16::from_le_bytes([*low, *high]) {
        USER_OBJ | GROUP_OBJ | MASK | OTHER => true,
        USER | GROUP => u32::from_le_bytes(*id) != u32::MAX,
        _ => false,
    };
    if entries.iter().all(is_known) { Ok(entries) } else { Err(AclEffect::Malformed) }
}

/// Returns the effect of setting the ACL `value` on a file with `mode`.
pub(super) fn effect(value: &[u8], mode: u32) -> AclEffect {
    let entries = match entries(value) {
        Ok(entries) => entries,
        Err(effect) => return effect,
    };
    if entries.is_empty() {
        return AclEffect::Mode(mode);
    }
    let (mut expected, mut needs_mask, mut permissions) = (USER_OBJ, false, 0);
    for [tag_low, tag_high, low, high, ..] in entries {
        let (tag, permission) =
            (u16::from_le_bytes([*tag_low, *tag_high]), u16::from_le_bytes([*low, *high]));
        let bits = u32::from(permission);
        if permission > 7 {
            return AclEffect::Malformed;
        }
        expected = match (tag, expected) {
            (USER_OBJ, USER_OBJ) => {
                permissions |= bits << 6;
                USER
            }
            (USER, USER) => {
                needs_mask = true;
                USER
            }
            (GROUP_OBJ, USER) => {
                permissions |= bits << 3;
                GROUP
            }
            (GROUP, GROUP) => {
                needs_mask = true;
                GROUP
            }
            (MASK, GROUP) => {
                permissions = permissions & !0o70 | bits << 3;
                OTHER
            }
            (OTHER, OTHER) => {
                permissions |= bits;
                0
            }
            (OTHER, GROUP) if !needs_mask => {
                permissions |= bits;
                0
            }
            _ => return AclEffect::Malformed,
        };
    }
    let mode = mode & !0o777 | permissions;
    match (expected, needs_mask || entries.len() > 3) {
        (0, true) => AclEffect::Kept(mode),
        (0, false) => AclEffect::Mode(mode),
        _ => AclEffect::Malformed,
    }
}

/// Returns the ACL of a file after its mode is set to `mode` (chmod(2)).
pub(super) fn with_mode(value: &[u8], mode: u32) -> Vec<u8> {
    let mut value = value.to_vec();
    let (entries, _) = value.get_mut(4..).unwrap_or_default().as_chunks_mut::<8>();
    let has_mask = entries.iter().any(|entry| u16::from_le_bytes([entry[0], entry[1]]) == MASK);
    for entry in entries {
        let permission = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER_OBJ => mode >> 6,
            MASK => mode >> 3,
            GROUP_OBJ if !has_mask => mode >> 3,
            OTHER => mode,
            _ => continue,
        };
        let [low, high, ..] = (permission & 7).to_le_bytes();
        [entry[2], entry[3]] = [low, high];
    }
    value
}

#[cfg(test)]
mod tests {
    use std::fs::{File, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use nix::errno::Errno;
    use proptest::prelude::*;

    use super::*;
    use larder_sys::xattr;

    const NAME: &[u8] = b"system.posix_acl_access";

    /// Returns the effect in the running kernel.
    fn kernel(file: &File, value: &[u8], mode: u32) -> Option<AclEffect> {
        xattr::remove(file, NAME).unwrap();
        file.set_permissions(Permissions::from_mode(mode)).unwrap();
        let set = xattr::set(file, NAME, value).map_err(|e| e.raw_os_error().map(Errno::from_raw));
        match set {
            Err(Some(Errno::EINVAL)) => return Some(AclEffect::Malformed),
            Err(Some(Errno::EOPNOTSUPP)) => return Some(AclEffect::Unknown),
            other => other.unwrap(),
        }
        let mode = file.metadata().unwrap().mode() & 0o7777;
        Some(match xattr::get(file, NAME).unwrap() {
            Some(_) => AclEffect::Kept(mode),
            None => AclEffect::Mode(mode),
        })
    }

    fn value() -> impl Strategy<Value = Vec<u8>> {
        let tag = prop_oneof![Just(1u16), Just(2), Just(4), Just(8), Just(16), Just(32), any::<u16>()];
        let permission = prop_oneof![9 => 0..8u16, 1 => any::<u16>()];
        let id = prop_oneof![3 => Just(u32::MAX), 3 => 0..3u32, 1 => any::<u32>()];
        let wild = prop::collection::vec((tag, permission.clone(), id.clone()), 0..7);
        // Mostly in order, because otherwise almost no ACL is valid.
        let ordered =
            (prop::collection::vec((permission, id), 8), any::<u8>()).prop_map(|(entries, which)| {
                let tags = [1u16, 2, 2, 4, 8, 8, 16, 32];
                let chosen = tags.into_iter().zip(entries).enumerate();
                let chosen =
                    chosen.filter(|(at, (tag, _))| matches!(tag, 1 | 4 | 32) || which >> at & 1 == 1);
                chosen.map(|(_, (tag, (permission, id)))| (tag, permission, id)).collect::<Vec<_>>()
            });
        let entries = prop_oneof![1 => wild, 3 => ordered];
        (prop_oneof![9 => Just(2u32), 1 => any::<u32>()], entries, prop_oneof![9 => Just(0), 1 => 0..9usize])
            .prop_map(|(version, entries, cut)| {
                let mut value = version.to_le_bytes().to_vec();
                for (tag, permission, id) in entries {
                    value.extend_from_slice(&tag.to_le_bytes());
                    value.extend_from_slice(&permission.to_le_bytes());
                    value.extend_from_slice(&id.to_le_bytes());
                }
                value.truncate(value.len() - cut.min(value.len()));
                value
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn as_the_kernel_judges(value in value(), mode in 0..=0o7777u32, other in 0..=0o7777u32) {
            let file = tempfile::tempfile().unwrap();
            // An empty value removes the ACL, and no tar contains one.
            if let Some(want) = kernel(&file, &value, mode).filter(|_| !value.is_empty()) {
                prop_assert_eq!(effect(&value, mode), want, "{:?}", value);
                if let AclEffect::Kept(_) = want {
                    let present = xattr::get(&file, NAME).unwrap().unwrap();
                    file.set_permissions(Permissions::from_mode(other)).unwrap();
                    let changed = xattr::get(&file, NAME).unwrap().unwrap();
                    prop_assert_eq!(with_mode(&present, other), changed);
                }
            }
        }
    }
}
