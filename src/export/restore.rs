//! Import of a disk image as a volume.
//!
//! The image is compared with its checksum file, if there is one. It is then checked as a file system,
//! mounted read-only in a private namespace, and verified from its own content. Only then does the volume
//! count as sealed.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::summed::checksum_path;
use super::{Error, Monitor, raw};
use crate::verify::apart::verify_apart;
use crate::volume::disk::{self, Superblock};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_model::seal::CacheManifest;
use larder_model::trust::Trust;
use larder_sys::space;

/// Maximum number of bytes read from a checksum file.
const MAX_SUMS: u64 = 64 << 10;

/// Reports whether the file at `path` is a disk image: an ext4 or EROFS file system.
pub fn is_image(path: &Path) -> bool {
    path.is_file()
        && File::open(path).and_then(|file| Superblock::read(&file)).is_ok_and(|found| found.is_some())
}

/// Imports the image at `input` as the sealed volume `volume`.
///
/// # Errors
/// Any [`Error`]. In that case `volume` is not sealed, and the same call can be repeated.
pub fn restore(input: &Path, volume: &Path, monitor: &Monitor) -> Result<CacheManifest, Error> {
    let shown = input.display().to_string();
    let image = File::open(input).context("opening", &shown)?;
    let want = expected_checksum(input)?;
    let receiving = disk::receive(volume)?;
    let file = receiving.file();
    let report = if space::reflink(&image, file).context("sharing the blocks of", &shown)? {
        raw::read(&image, monitor, &mut |_, _| Ok(()))?
    } else {
        let size = image.metadata().context("examining", &shown)?.len();
        file.set_len(size).context("writing", "disk.img")?;
        raw::read(&image, monitor, &mut |at, bytes| file.write_all_at(bytes, at))?
    };
    if let (Some(want), Some(found)) = (want, report.sha256)
        && want != found
    {
        return Err(Error::Checksum { path: shown, want, found });
    }
    let entered = receiving.enter()?;
    verify_apart(entered.path(), &Trust::default()).map_err(|e| Error::Unverified {
        path: shown,
        class: e.class(),
        why: e.to_string(),
    })?;
    monitor.advance(0)?;
    let seal = entered.seal()?;
    let sealed = CacheManifest::parse(&seal.cache_json);
    let sealed = sealed.map_err(|e| Error::Contradiction { what: e.to_string() })?;
    drop(entered);
    receiving.finish(&seal)?;
    Ok(sealed)
}

/// Reads the checksum file next to the image, in the format of sha256sum(1). `None` if there is none.
fn expected_checksum(input: &Path) -> Result<Option<Digest>, Error> {
    let path = checksum_path(input);
    let mut text = String::new();
    match File::open(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file
            .and_then(|file| file.take(MAX_SUMS).read_to_string(&mut text))
            .context("reading", path.display())?,
    };
    let hex = text.split_whitespace().next().unwrap_or_default().trim_start_matches('\\');
    match format!("sha256:{hex}").parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(_) => Err(Error::Unverified {
            path: path.display().to_string(),
            class: Class::Corrupt,
            why: "it is not in the format of sha256sum".to_owned(),
        }),
    }
}
