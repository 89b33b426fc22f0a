//! Export of the image file of a disk volume.
//!
//! If the file system supports it, the copy shares the blocks of the original. Otherwise holes are preserved.
//! Either way every byte is read once to compute its sha256, which is written next to the image in the format
//! of sha256sum(1).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::summed::Summed;
use super::{Error, Monitor, Report, Request};
use crate::volume;
use crate::volume::disk::IMAGE;
use crate::volume::lease::Lease;
use larder_model::digest::{Algorithm, Hasher};
use larder_model::io_error::Context as _;
use larder_sys::lock::Lock;
use larder_sys::{Dir, space};

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// The disk image. No process can write to or remove it while this value exists.
struct Disk {
    image: File,
    _lock: Lock,
    _lease: Lease,
}

impl Disk {
    fn open(volume: &Path) -> Result<Self, Error> {
        let path = || volume.display().to_string();
        let dir = Dir::open(volume).context("opening the volume", path())?;
        if dir.try_stat(IMAGE).context("examining", "disk.img")?.is_none() {
            return Err(Error::NoDisk { path: path() });
        }
        let lock = Lock::try_shared(&dir, IMAGE).context("locking", "disk.img")?;
        let lock = lock.ok_or_else(|| Error::InUse { path: path() })?;
        let lease = Lease::shared(&dir)?.ok_or_else(|| Error::BeingRemoved { path: path() })?;
        volume::seal::read(volume)?;
        let image = dir.open_file(IMAGE).context("opening", "disk.img")?;
        Ok(Disk { image, _lock: lock, _lease: lease })
    }

    fn size(&self) -> Result<u64, Error> {
        Ok(self.image.metadata().context("examining", "disk.img")?.len())
    }
}

pub(super) fn export(
    volume: &Path,
    out: &Path,
    request: &Request,
    monitor: &Monitor,
) -> Result<Report, Error> {
    if !request.images.is_empty() {
        return Err(Error::WholeDisk);
    }
    let disk = Disk::open(volume)?;
    let unfinished = Summed::begin(out, request.force)?;
    let file = unfinished.file()?;
    let report = if space::reflink(&disk.image, &file).context("sharing the blocks of", "disk.img")? {
        read(&disk.image, monitor, &mut |_, _| Ok(()))?
    } else {
        file.set_len(disk.size()?).context("writing", "the image")?;
        read(&disk.image, monitor, &mut |at, bytes| file.write_all_at(bytes, at))?
    };
    unfinished.finish(report)
}

pub(super) fn export_to(
    volume: &Path,
    mut out: Box<dyn Write + Send + '_>,
    monitor: &Monitor,
) -> Result<Report, Error> {
    let disk = Disk::open(volume)?;
    let zeros = vec![0; CHUNK];
    let mut end = 0;
    let mut put = |at: u64, bytes: &[u8]| {
        while end < at {
            let len = chunk(at - end);
            out.write_all(&zeros[..len])?;
            end += len as u64;
        }
        out.write_all(bytes)?;
        end += bytes.len() as u64;
        Ok(())
    };
    let report = read(&disk.image, monitor, &mut put)?;
    // Write a hole at the end.
    put(report.size, &[]).and_then(|()| out.flush()).context("writing", "the image")?;
    Ok(report)
}

/// Reads the whole disk image and computes its checksum. `take` receives the data, without holes, and its
/// offset.
pub(super) fn read(
    image: &File,
    monitor: &Monitor,
    take: &mut dyn FnMut(u64, &[u8]) -> std::io::Result<()>,
) -> Result<Report, Error> {
    let size = image.metadata().context("examining", "the image")?.len();
    monitor.expect(size);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; CHUNK];
    let zeros = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let data = space::next_data(image, at).context("finding data in", "the image")?;
        let data = data.map_or(size..size, |data| data.start.min(size)..data.end.min(size));
        while at < data.start {
            let len = chunk(data.start - at);
            hasher.update(&zeros[..len]);
            at += len as u64;
            monitor.advance(len as u64)?;
        }
        while at < data.end {
            let len = chunk(data.end - at);
            image.read_exact_at(&mut buffer[..len], at).context("reading", "the image")?;
            hasher.update(&buffer[..len]);
            take(at, &buffer[..len]).context("writing", "the image")?;
            at += len as u64;
            monitor.advance(len as u64)?;
        }
    }
    Ok(Report { images: Vec::new(), size, sha256: Some(hasher.finish()) })
}

fn chunk(left: u64) -> usize {
    usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
}
