//! Checks whether the superblock of an ext4 is one that Larder writes. `mkfs.ext4` creates it with the
//! options in `tools`, and the kernel changes a few fields when the disk is filled (Linux, filesystems/ext4,
//! "The Super Block").
//!
//! The superblock determines how the kernel reads everything else, and what it does at the first error. A
//! field with a fixed value must have that value, and unused fields must be zero.

/// A field: its name, its offset and its length in bytes.
type Field = (&'static str, usize, usize);

/// Fields that have the same value on every disk of Larder.
const FIXED: [(Field, u64); 32] = [
    (("s_r_blocks_count_lo", 0x08, 4), 0),
    (("s_first_data_block", 0x14, 4), 0),
    (("s_log_block_size", 0x18, 4), 2),
    (("s_log_cluster_size", 0x1C, 4), 2),
    (("s_blocks_per_group", 0x20, 4), 32768),
    (("s_clusters_per_group", 0x24, 4), 32768),
    (("s_state", 0x3A, 2), 1),
    // Remount read-only at the first error.
    (("s_errors", 0x3C, 2), 2),
    (("s_minor_rev_level", 0x3E, 2), 0),
    (("s_creator_os", 0x48, 4), 0),
    (("s_rev_level", 0x4C, 4), 1),
    (("s_def_resuid", 0x50, 2), 0),
    (("s_def_resgid", 0x52, 2), 0),
    (("s_first_ino", 0x54, 4), 11),
    (("s_inode_size", 0x58, 2), 256),
    (("s_block_group_nr", 0x5A, 2), 0),
    // ext_attr, dir_index
    (("s_feature_compat", 0x5C, 4), 0x28),
    // filetype, extent, 64bit, flex_bg
    (("s_feature_incompat", 0x60, 4), 0x2C2),
    // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum
    (("s_feature_ro_compat", 0x64, 4), 0x46B),
    (("s_prealloc_blocks", 0xCC, 2), 0),
    (("s_reserved_gdt_blocks", 0xCE, 2), 0),
    // Half MD4
    (("s_def_hash_version", 0xFC, 1), 1),
    (("s_desc_size", 0xFE, 2), 64),
    // acl, user_xattr
    (("s_default_mount_opts", 0x100, 4), 0xC),
    (("s_first_meta_bg", 0x104, 4), 0),
    (("s_r_blocks_count_hi", 0x154, 4), 0),
    (("s_min_extra_isize", 0x15C, 2), 32),
    (("s_want_extra_isize", 0x15E, 2), 32),
    (("s_log_groups_per_flex", 0x174, 1), 4),
    // crc32c
    (("s_checksum_type", 0x175, 1), 1),
    (("s_encryption_level", 0x176, 1), 0),
    (("s_reserved_pad", 0x177, 1), 0),
];

/// Byte ranges that are zero on every disk of Larder.
const ZERO: [Field; 7] = [
    ("s_algorithm_usage_bitmap", 0xC8, 4),
    ("the journal's fields", 0xD0, 0xEC - 0xD0),
    ("s_jnl_blocks", 0x10C, 68),
    ("the fields of multiple mount protection", 0x166, 0x170 - 0x166),
    ("the fields of snapshots and errors", 0x180, 0x200 - 0x180),
    ("s_mount_opts and the inodes of quotas", 0x200, 0x248 - 0x200),
    ("the fields of backups, encryption and projects", 0x24C, 0x274 - 0x24C),
];

/// The rest of the superblock, between the upper halves of times and the checksum.
const RESERVED: Field = ("s_encoding and the fields after it", 0x27C, 0x3FC - 0x27C);

/// Describes the first field that differs from a superblock of Larder; `None` if all fields match.
pub(super) fn fault(bytes: &[u8; 1024]) -> Option<String> {
    let value = |at: usize, len: usize| {
        bytes[at..at + len].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    for ((name, at, len), want) in FIXED {
        let found = value(at, len);
        if found != want {
            return Some(format!(
                "{name} of its superblock is {found:#x}, but a disk of Larder has {want:#x}"
            ));
        }
    }
    for (name, at, len) in ZERO.into_iter().chain([RESERVED]) {
        if bytes[at..at + len].iter().any(|byte| *byte != 0) {
            return Some(format!("{name} of its superblock should be zero, as on a disk of Larder"));
        }
    }
    // Name hashes are signed or unsigned, depending on the machine's char type.
    if ![1, 2].contains(&value(0x160, 4)) {
        return Some(format!("s_flags of its superblock is {:#x}", value(0x160, 4)));
    }
    (bytes[0x68..0x78] != bytes[0xEC..0xFC])
        .then(|| "s_hash_seed of its superblock differs from its UUID, unlike on a disk of Larder".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts() {
        let mut sound = [0; 1024];
        for ((_, at, len), want) in FIXED {
            sound[at..at + len].copy_from_slice(&want.to_le_bytes()[..len]);
        }
        sound[0x160] = 1;
        sound[0x68..0x78].fill(7);
        sound[0xEC..0xFC].fill(7);
        assert_eq!(fault(&sound), None);
        // Fields that the kernel and resize2fs change.
        for at in [0x4, 0x2C, 0x30, 0x34, 0x78, 0x88, 0x108, 0x150, 0x178, 0x248, 0x274, 0x3FC] {
            let mut other = sound;
            other[at] ^= 0x40;
            assert_eq!(fault(&other), None, "{at:#x}");
        }
        let fixed = FIXED.into_iter().map(|(field, _)| field);
        for (name, at, len) in fixed.chain(ZERO).chain([RESERVED]) {
            for byte in [at, at + len - 1] {
                let mut other = sound;
                other[byte] ^= 0x40;
                let description = fault(&other).unwrap_or_default();
                assert!(description.contains(name), "{byte:#x}: {description}");
            }
        }
        sound[0x68] = 8;
        assert!(fault(&sound).is_some_and(|description| description.contains("s_hash_seed")));
    }
}
