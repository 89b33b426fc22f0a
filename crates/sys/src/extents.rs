//! Physical location of the bytes of a file (FIEMAP; Linux, filesystems/fiemap.rst).

mod kernel;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;

/// A contiguous range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub logical: u64,
    /// Offset on the disk, in bytes. `None` if the file system has not allocated it yet, or if the content is
    /// in the inode or compressed.
    pub physical: Option<u64>,
    /// Length in bytes. The last extent can reach beyond the end of the file.
    pub length: u64,
}

/// Returns at most `limit` extents of a file, in file order; holes have none. `None` if the file system does
/// not support FIEMAP.
///
/// # Errors
/// Those of ioctl(2).
pub fn of(file: &File, limit: usize) -> io::Result<Option<Vec<Extent>>> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let batch = match kernel::map(file.as_fd(), start) {
            Ok(batch) => batch,
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EINVAL) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        for raw in &batch {
            if extents.len() == limit {
                return Ok(Some(extents));
            }
            extents.push(raw.into());
        }
        let Some(last) = batch.last() else { return Ok(Some(extents)) };
        let next = last.logical.saturating_add(last.length);
        // Stops if the file system makes no progress, which would repeat the call forever.
        if last.flags & kernel::LAST != 0 || next <= start {
            return Ok(Some(extents));
        }
        start = next;
    }
}

impl From<&kernel::Raw> for Extent {
    fn from(raw: &kernel::Raw) -> Self {
        let placed = raw.flags & (kernel::UNKNOWN | kernel::ENCODED | kernel::NOT_ALIGNED) == 0;
        Extent { logical: raw.logical, physical: placed.then_some(raw.physical), length: raw.length }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_hole_has_no_extent() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 8192], 1 << 20).unwrap();
        file.sync_all().unwrap();
        let Some(extents) = of(&file, usize::MAX).unwrap() else {
            eprintln!("skipped: the file system of the temporary directory does not report extents");
            return;
        };
        assert_eq!(extents.first().map(|extent| extent.logical), Some(1 << 20));
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 8192);
        assert_eq!(of(&file, 0).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn more_extents_than_one_call_returns() {
        let file = tempfile::tempfile().unwrap();
        let count = 2 * u64::from(kernel::BATCH) + 3;
        for at in 0..count {
            file.write_all_at(&[1], at << 16).unwrap();
        }
        file.sync_all().unwrap();
        let Some(extents) = of(&file, usize::MAX).unwrap() else { return };
        let starts: Vec<u64> = extents.iter().map(|extent| extent.logical).collect();
        assert_eq!(starts, (0..count).map(|at| at << 16).collect::<Vec<_>>());
    }
}
