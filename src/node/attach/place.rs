//! Volume paths and mount points.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use super::error::Error;
use crate::caches::attachments::Attachment;
use crate::node::podman::skeleton;
use larder_model::io_error::{Context as _, IoError};
use larder_sys::{Dir, dir, mount};

/// Default mount point. It is short because overlayfs limits the total length of layer paths to one page.
const DEFAULT: &str = "/icv";
/// Maximum number of default mount points.
const MAX_DEFAULT_PLACES: u32 = 99;

/// Returns the canonical path of the volume. Symbolic links are resolved, except for a block device, whose
/// name can change at the next boot.
pub(super) fn resolve(volume: &Path) -> Result<PathBuf, Error> {
    let facts = fs::metadata(volume).context("opening the volume", volume.display())?;
    if facts.file_type().is_block_device() {
        return Ok(std::path::absolute(volume).context("resolving", volume.display())?);
    }
    Ok(volume.canonicalize().context("resolving", volume.display())?)
}

/// Checks a mount point that the user gave, and returns it in canonical form.
pub(super) fn check(at: &Path) -> Result<PathBuf, Error> {
    let fault = |fault| Error::At { at: at.to_owned(), fault };
    if !at.is_absolute() || at.components().any(|part| part == Component::ParentDir) {
        return Err(fault("use an absolute path without .."));
    }
    if at.parent().is_none() {
        return Err(fault("use a directory other than the root"));
    }
    // Other characters can be separators in overlayfs options, in lists of stores and in the files that
    // contain them.
    if !at.as_os_str().as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(b)) {
        return Err(fault("use a path of letters, digits, - _ . and /"));
    }
    match at.canonicalize() {
        Ok(at) => Ok(at),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(at.components().collect()),
        Err(e) => Err(IoError::new("resolving", at.display(), e).into()),
    }
}

/// Returns the mount point of `volume` if it is attached, or the first free default mount point.
pub(super) fn choose(volume: &Path, known: &[Attachment]) -> Result<PathBuf, Error> {
    if let Some(record) = known.iter().find(|record| record.volume == volume) {
        return Ok(record.at.clone());
    }
    let places = (1..=MAX_DEFAULT_PLACES).map(|number| match number {
        1 => PathBuf::from(DEFAULT),
        number => PathBuf::from(format!("{DEFAULT}{number}")),
    });
    let free = |at: &PathBuf| known.iter().all(|record| record.at != *at) && check_empty(at).is_ok();
    let mut free_places = places.filter(free);
    free_places.next().ok_or(Error::At {
        at: DEFAULT.into(),
        fault: "all default mount points are in use: specify one with --at",
    })
}

/// Returns the mount point of the image store for the volume at `at`. It is short as well.
pub(super) fn store(at: &Path) -> PathBuf {
    let mut path = at.as_os_str().to_owned();
    path.push(".s");
    path.into()
}

/// Reports whether a file system is mounted at `at`.
pub(super) fn is_mounted(at: &Path) -> Result<bool, Error> {
    match Dir::open(at) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => {
            let dir = other.context("opening", at.display())?;
            Ok(mount::is_mount_point(&dir).context("examining", at.display())?)
        }
    }
}

/// Checks that a mount at `at` would hide no files.
pub(super) fn check_empty(at: &Path) -> Result<(), Error> {
    match skeleton::is_all(at) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(IoError::new("listing", at.display(), e).into()),
        Ok(true) if !is_mounted(at)? => Ok(()),
        Ok(_) => Err(Error::Foreign(at.to_owned())),
    }
}

/// Creates the mount point. It is accessible to every user of the host, because the content is
/// world-readable.
pub(super) fn make(at: &Path) -> Result<(), Error> {
    Ok(dir::create_all(at, 0o755).context("creating", at.display())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    #[test]
    fn mount_points_are_canonical() {
        assert_eq!(check(Path::new("/no/such//place/")).unwrap(), Path::new("/no/such/place"));
        for bad in ["icv", "/", "/a/../b", "/a:b", "/a b", "/a,b", "/\u{e9}"] {
            assert!(matches!(check(Path::new(bad)), Err(Error::At { .. })), "{bad}");
        }
    }

    #[test]
    fn the_first_free_place() {
        let (volume, other) = (Path::new("/v/1.1"), Path::new("/v/2.1"));
        let record = |volume, at: &str| Attachment::new(volume, Path::new(at), DateTime::UNIX_EPOCH);
        let known = [record(volume, "/icv"), record(other, "/elsewhere")];
        assert_eq!(choose(volume, &known).unwrap(), Path::new("/icv"));
        assert_eq!(choose(other, &known).unwrap(), Path::new("/elsewhere"));
        assert_eq!(choose(Path::new("/v/3.1"), &known).unwrap(), Path::new("/icv2"));
    }
}
