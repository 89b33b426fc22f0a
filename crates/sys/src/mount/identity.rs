//! Which mount a file or directory is on.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// `STATX_MNT_ID_UNIQUE` (statx(2), Linux 6.8): rustix has no name for it.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Returns the ID of the mount that `inode` was opened on. From Linux 6.8 on no other mount of this boot gets the same ID; older
/// kernels may give it to a later mount.
///
/// # Errors
/// Those of statx(2), and `Unsupported` before Linux 5.8.
pub fn id(inode: impl AsFd) -> io::Result<u64> {
    for wanted in [UNIQUE, StatxFlags::MNT_ID] {
        let facts = statx(&inode, "", AtFlags::EMPTY_PATH, wanted)?;
        if facts.stx_mask & wanted.bits() != 0 {
            return Ok(facts.stx_mnt_id);
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}
