//! Fragmentation of the layers of a volume on its disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use serde::Serialize;

use super::error::Error;
use super::files;
use crate::trees;
use crate::volume::layout;
use larder_model::chain::ChainId;
use larder_model::job::LayerFormat;
use larder_model::seal::Content;
use larder_sys::{Dir, extents};

const GIB: u64 = 1 << 30;

/// Fragmentation of the files of one layer, or of all layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Number of regular files with content, each inode once.
    pub files: u64,
    /// Number of files that consist of more than one piece.
    pub fragmented: u64,
    /// Total length of the extents, bytes.
    pub bytes: u64,
    /// Number of extents of all files, as the file system counts them.
    pub extents: u64,
    /// Number of pieces of the whole. Adjacent extents on the disk, of whatever files, are one piece.
    pub pieces: u64,
    /// Number of files whose location the file system does not report.
    pub unknown: u64,
}

impl Placement {
    /// Returns the extents per GiB of content. A layer of small files has as many extents as files.
    pub fn extents_per_gib(&self) -> u64 {
        self.per_gib(self.extents)
    }

    /// Returns the pieces per GiB of content: the number of seeks of a disk that reads all of it in order.
    pub fn pieces_per_gib(&self) -> u64 {
        self.per_gib(self.pieces)
    }

    fn per_gib(&self, count: u64) -> u64 {
        let scaled = u128::from(count) * u128::from(GIB) / u128::from(self.bytes.max(1));
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    fn of(diff: Dir) -> io::Result<Self> {
        let mut measurement = Measurement::default();
        files::each(diff, |dir, name, _, _| measurement.file(&dir.open_file(name)?))?;
        Ok(measurement.finish())
    }

    fn of_files(files: impl IntoIterator<Item = File>) -> io::Result<Self> {
        let mut measurement = Measurement::default();
        files.into_iter().try_for_each(|file| measurement.file(&file))?;
        Ok(measurement.finish())
    }

    fn add(&mut self, other: &Placement) {
        self.files += other.files;
        self.fragmented += other.fragmented;
        self.bytes += other.bytes;
        self.extents += other.extents;
        self.pieces += other.pieces;
        self.unknown += other.unknown;
    }
}

#[derive(Default)]
struct Measurement {
    placement: Placement,
    all: Vec<(u64, u64)>,
}

impl Measurement {
    fn file(&mut self, file: &File) -> io::Result<()> {
        let Measurement { placement, all } = self;
        let extents = extents::of(file, usize::MAX)?;
        match extents.filter(|extents| extents.iter().all(|extent| extent.physical.is_some())) {
            None => placement.unknown += 1,
            Some(extents) if extents.is_empty() => {}
            Some(extents) => {
                let ranges = extents.iter().filter_map(|extent| Some((extent.physical?, extent.length)));
                let ranges: Vec<(u64, u64)> = ranges.collect();
                placement.files += 1;
                placement.extents += ranges.len() as u64;
                placement.bytes += ranges.iter().map(|(_, length)| length).sum::<u64>();
                placement.fragmented += u64::from(pieces(&ranges) > 1);
                all.extend(ranges);
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Placement {
        self.all.sort_unstable();
        self.placement.pieces = pieces(&self.all);
        self.placement
    }
}

/// Counts the ranges that do not start at the end of their predecessor, in the given order.
fn pieces(ranges: &[(u64, u64)]) -> u64 {
    let mut end = None;
    ranges.iter().filter(|(start, length)| end.replace(start.saturating_add(*length)) != Some(*start)).count()
        as u64
}

/// Measures every layer, and returns the result by layer and the sum. A change set with one image for several
/// parents counts for each.
///
/// # Errors
/// A file of a layer cannot be read.
pub fn of(root: &Dir, content: &Content) -> Result<(BTreeMap<ChainId, Placement>, Placement), Error> {
    let mut layers = BTreeMap::new();
    let mut total = Placement::default();
    for layer in &content.layers {
        let paths = layout::parts(content.layer_format, layer).trees;
        let path = paths.last().cloned().unwrap_or_default();
        let placement = match content.layer_format {
            LayerFormat::Overlay => root.open_beneath(path.as_bytes()).and_then(Placement::of),
            LayerFormat::Erofs => {
                let files = paths.iter().map(|path| trees::file(root, path).map_err(|e| e.source));
                files.collect::<io::Result<Vec<File>>>().and_then(Placement::of_files)
            }
        };
        let placement = placement.map_err(|e| Error::reading(path.as_bytes(), e))?;
        total.add(&placement);
        layers.insert(layer.chain_id.clone(), placement);
    }
    Ok((layers, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_piece() {
        assert_eq!(pieces(&[]), 0);
        assert_eq!(pieces(&[(0, 4), (4, 4), (12, 4), (8, 4)]), 3);
    }

    #[test]
    fn per_gib() {
        let placement = Placement { bytes: GIB / 4, extents: 3, pieces: 1, ..Placement::default() };
        assert_eq!((placement.extents_per_gib(), placement.pieces_per_gib()), (12, 4));
        assert_eq!(Placement::default().extents_per_gib(), 0);
    }
}
