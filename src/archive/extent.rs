//! Location of a member's content in its archive.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use larder_layer::limits::Ratio;
use larder_layer::tar::Region;

/// Bytes compared at a time.
const CHUNK: usize = 1 << 18;

/// The location of a member's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Offset of its data in the archive.
    start: u64,
    /// Size of the content, including holes.
    pub(super) size: u64,
    /// Regions of the content that have data, in order; `None` if all of it has.
    map: Option<Arc<[Region]>>,
}

impl Extent {
    /// Creates the extent of a file without holes.
    pub(super) fn whole(start: u64, size: u64) -> Self {
        Extent { start, size, map: None }
    }

    /// Creates the extent of a sparse file whose data starts at `start` of an archive of `length` bytes.
    /// `map` is ordered and within `size`.
    ///
    /// # Errors
    /// The archive ends before the data does, or the file has too many holes.
    pub(super) fn sparse(start: u64, size: u64, map: &[Region], length: u64) -> Result<Self, &'static str> {
        let stored: u64 = map.iter().map(|region| region.length).sum();
        if start.checked_add(stored).is_none_or(|end| end > length) {
            return Err("the archive ends inside it");
        }
        // All of it is read and hashed, including holes.
        if Ratio::default().is_exceeded(stored, size) {
            return Err("a sparse file with more holes than an image archive has");
        }
        Ok(Extent { start, size, map: Some(map.into()) })
    }

    /// Fills `bytes` with the content at `offset`.
    ///
    /// # Errors
    /// Those of pread(2).
    pub(super) fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(map) = &self.map else {
            return file.read_exact_at(bytes, self.start + offset);
        };
        bytes.fill(0);
        let end = offset + bytes.len() as u64;
        let mut stored = self.start;
        for region in map.iter() {
            let (from, to) = (region.offset.max(offset), (region.offset + region.length).min(end));
            if from < to {
                let within = |at: u64| usize::try_from(at - offset).map_err(io::Error::other);
                let piece = &mut bytes[within(from)?..within(to)?];
                file.read_exact_at(piece, stored + (from - region.offset))?;
            }
            stored += region.length;
        }
        Ok(())
    }

    /// Reports whether two contents of one archive are equal. Two sparse files are equal only if they have
    /// the same holes, so that no more is read than the archive contains.
    ///
    /// # Errors
    /// Those of [`read_at`](Extent::read_at).
    pub(super) fn is_equal(&self, other: &Extent, file: &File) -> io::Result<bool> {
        if self.size != other.size {
            return Ok(false);
        }
        if let (Some(map), Some(of_other)) = (&self.map, &other.map) {
            let stored = map.iter().map(|region| region.length).sum();
            let [one, two] = [self, other].map(|extent| Extent::whole(extent.start, stored));
            return Ok(map == of_other && one.is_equal(&two, file)?);
        }
        let (mut one, mut two) = (vec![0; CHUNK], vec![0; CHUNK]);
        let mut at = 0;
        while at < self.size {
            let length = usize::try_from(self.size - at).map_or(CHUNK, |left| left.min(CHUNK));
            self.read_at(file, &mut one[..length], at)?;
            other.read_at(file, &mut two[..length], at)?;
            if one[..length] != two[..length] {
                return Ok(false);
            }
            at += length as u64;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeros_wherever_reading_begins() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"..abcdeABCDEFG", 0).unwrap();
        let map = [(3, 5), (10, 0), (12, 2)].map(|(offset, length)| Region { offset, length });
        let extent = Extent::sparse(2, 16, &map, 14).unwrap();
        let want = b"\0\0\0abcde\0\0\0\0AB\0\0";
        for offset in 0..16 {
            for end in offset..=16 {
                let mut bytes = vec![7; end - offset];
                extent.read_at(&file, &mut bytes, offset as u64).unwrap();
                assert_eq!(bytes, want[offset..end], "{offset}..{end}");
            }
        }
        assert!(extent.is_equal(&extent, &file).unwrap());
        assert!(!extent.is_equal(&Extent::whole(0, 14), &file).unwrap());
        assert!(Extent::sparse(10, 16, &map, 14).is_err());
        assert!(Extent::sparse(2, 1 << 50, &map, 14).is_err());
    }
}
