//! Where the bytes of a file lie on its disk (FIEMAP; Linux, filesystems/fiemap.rst).

mod kernel;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;

/// A range of a file that lies in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file, bytes.
    pub logical: u64,
    /// Where it begins on the disk, bytes; none where the file system has not chosen a place, or where the content lies
    /// in the inode or is compressed.
    pub physical: Option<u64>,
    /// Length, bytes. The last one may go beyond the end of the file.
    pub length: u64,
}

/// The extents of a file in the order of the file, at most `limit`; holes have none. Nothing where the file system does not
/// tell.
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
        // A file system that does not move on would be asked for ever.
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
            eprintln!("skipped: the file system of the temporary directory tells no extents");
            return;
        };
        assert_eq!(extents.first().map(|extent| extent.logical), Some(1 << 20));
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 8192);
        assert_eq!(of(&file, 0).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn more_extents_than_one_call_gives() {
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
