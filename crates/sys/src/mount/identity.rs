//! Identity of the mount that a file or directory is on.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, StatxFlags, statx};

/// `STATX_MNT_ID_UNIQUE` (statx(2), Linux 6.8), which rustix does not define.
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// Returns the ID of the mount on which `inode` was opened. Since Linux 6.8 the ID is unique until the next
/// boot; older kernels can reuse it for a later mount.
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
