//! Reading files of a volume into the page cache with many requests in flight.
//!
//! A disk with high latency answers many requests in the time of one. So many threads open the files, which
//! reads directories and inodes. Then as many threads read the ranges, in the order in which they are on the
//! disk. posix_fadvise(2) with WILLNEED was not faster with reads of 10 ms, and requested some ranges twice.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::trees;
use larder_layer::path;
use larder_layer::stored::StoredDir;
use larder_model::job::LayerFormat;
use larder_prefetch::list::Entry;
use larder_sys::extents::{self, Extent};
use larder_sys::{Dir, dir};

/// Number of requests in flight. With reads of 10 ms, 64 are slightly faster than 32, and 128 are not faster.
const DEPTH: usize = 64;

/// Maximum size of one request, bytes.
const CHUNK: u64 = 256 << 10;

/// Number of files open at a time; below the usual limit of 1024 descriptors.
const BATCH: usize = 512;

/// Maximum number of extents of one file. The container reads the rest itself.
const MAX_EXTENTS: usize = 1 << 16;

/// Number of files and bytes that were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of files read.
    pub files: u64,
    /// Number of bytes read, without holes.
    pub bytes: u64,
}

/// A path that could not be read, and the cause.
pub(super) type Failed = (Vec<u8>, io::Error);

/// Reads files of the volume at `root`, given by their paths from there. Symbolic links are not followed. A
/// path that is not a regular file is an error.
pub(super) fn read(root: &Dir, paths: &[Vec<u8>]) -> Result<Totals, Failed> {
    let mut totals = Totals::default();
    for paths in paths.chunks(BATCH) {
        let opened = side_by_side(paths, |path| open(root, path).map_err(|e| (path.clone(), e)))?;
        let of_file = |(at, (_, extents)): (usize, &(File, Vec<Extent>))| {
            chunks(extents).map(move |chunk| (at, chunk)).collect::<Vec<_>>()
        };
        let mut ranges: Vec<(usize, Extent)> = opened.iter().enumerate().flat_map(of_file).collect();
        ranges.sort_by_key(|(at, range)| (range.physical, *at, range.logical));
        let read = side_by_side(&ranges, |(at, range)| {
            read_range(&opened[*at].0, range).map_err(|e| (paths[*at].clone(), e))
        })?;
        totals.files += opened.len() as u64;
        totals.bytes += read.iter().sum::<u64>();
    }
    Ok(totals)
}

/// Reads files in EROFS images of the volume at `root`.
pub(super) fn read_in_images(root: &Dir, entries: &[Entry]) -> Result<Totals, Failed> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.tree.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let opened = side_by_side(&names, |name| {
        let tree = trees::tree(root, LayerFormat::Erofs, name);
        tree.map(|tree| (*name, tree)).map_err(|e| (name.as_bytes().to_vec(), e.source))
    })?;
    let images: HashMap<&str, StoredDir> = opened.into_iter().collect();
    let read = side_by_side(entries, |Entry { tree, path, .. }| {
        let read = images.get(tree.as_str()).ok_or_else(|| io::ErrorKind::NotFound.into());
        read.and_then(|image| whole(image, path)).map_err(|e| (path::join(tree.as_bytes(), path), e))
    })?;
    Ok(Totals { files: entries.len() as u64, bytes: read.iter().sum() })
}

/// Reads all data of a file in an image and returns its size in bytes.
fn whole(image: &StoredDir, file: &[u8]) -> io::Result<u64> {
    let (parent, name) = path::split(file);
    let mut dir = image.try_clone()?;
    for component in path::components(parent) {
        dir = dir.open_dir(component)?;
    }
    let mut file = dir.open_file(name)?;
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or_default()];
    let mut read = 0;
    for region in file.regions()? {
        file.seek(SeekFrom::Start(region.offset))?;
        let mut left = (&mut file).take(region.length);
        while let n @ 1.. = left.read(&mut buffer)? {
            read += n as u64;
        }
    }
    Ok(read)
}

/// Looks names up in directories of the volume, each given with the path of its directory. Results are
/// ignored. Afterwards, the kernel has the names in its cache, including those that do not exist.
pub(super) fn look_up(root: &Dir, names: &[(Vec<u8>, Vec<u8>)]) {
    let look = |(dir, name): &(Vec<u8>, Vec<u8>)| {
        let _ = root.open_beneath(dir).and_then(|dir| dir.try_stat(name));
        Ok::<_, Failed>(())
    };
    let _ = side_by_side(names, look);
}

/// Opens a file and reads its extents.
fn open(root: &Dir, path: &[u8]) -> io::Result<(File, Vec<Extent>)> {
    let (parent, name) = path::split(path);
    let file = root.open_beneath(parent)?.open_file(name)?;
    let stat = dir::stat_fd(&file)?;
    let extents = match extents::of(&file, MAX_EXTENTS)? {
        Some(extents) => extents,
        // A sparse file can claim a size larger than any disk.
        None => vec![Extent { logical: 0, physical: None, length: stat.size.min(stat.allocated.max(CHUNK)) }],
    };
    let within = |extent: Extent| {
        let end = extent.logical.saturating_add(extent.length).min(stat.size);
        let length = end.saturating_sub(extent.logical);
        (length > 0).then_some(Extent { length, ..extent })
    };
    Ok((file, extents.into_iter().filter_map(within).collect()))
}

/// Cuts extents into requests.
fn chunks(extents: &[Extent]) -> impl Iterator<Item = Extent> {
    extents.iter().flat_map(|extent| {
        (0..extent.length.div_ceil(CHUNK)).map(move |n| {
            let into = n * CHUNK;
            Extent {
                logical: extent.logical + into,
                physical: extent.physical.map(|at| at.saturating_add(into)),
                length: CHUNK.min(extent.length - into),
            }
        })
    })
}

fn read_range(file: &File, range: &Extent) -> io::Result<u64> {
    let mut buffer = vec![0; usize::try_from(range.length).unwrap_or_default()];
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], range.logical + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read as u64)
}

/// Runs `work` for all items in [`DEPTH`] threads, started in order. The results are in the order of the
/// items. After an error no further item is started.
pub(super) fn side_by_side<T: Sync, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = Mutex::new(items.iter().enumerate());
    let done = Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>());
    let failed = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..DEPTH.min(items.len()) {
            scope.spawn(|| {
                loop {
                    if lock(&failed).is_some() {
                        return;
                    }
                    let Some((at, item)) = lock(&next).next() else { return };
                    match work(item) {
                        Ok(result) => lock(&done)[at] = Some(result),
                        Err(error) => *lock(&failed) = Some(error),
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().flatten().collect()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that panics also ends the scope.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
