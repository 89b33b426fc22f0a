//! What is mounted, and where.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use super::error::{Error, io as failed};
use crate::caches::attachments::Attachment;
use crate::node::podman::skeleton;
use larder_sys::{Dir, dir, mount};

/// Where volumes are mounted if nobody says so. Short, for overlayfs takes the paths of all layers in one page.
const DEFAULT: &str = "/icv";
/// Volumes that are given such a place.
const MOST: u32 = 99;

/// The volume's own path, by which others know it: without symbolic links, except that of a block device, whose number may
/// be another one after the next boot.
pub(super) fn resolve(volume: &Path) -> Result<PathBuf, Error> {
    let facts = fs::metadata(volume).map_err(failed("opening the volume", volume))?;
    if facts.file_type().is_block_device() {
        return std::path::absolute(volume).map_err(failed("resolving", volume));
    }
    volume.canonicalize().map_err(failed("resolving", volume))
}

/// The place that somebody gave, in one form.
pub(super) fn check(at: &Path) -> Result<PathBuf, Error> {
    let fault = |fault| Error::At { at: at.to_owned(), fault };
    if !at.is_absolute() || at.components().any(|part| part == Component::ParentDir) {
        return Err(fault("give an absolute path without .."));
    }
    if at.parent().is_none() {
        return Err(fault("give another directory than the root"));
    }
    // Separators of overlayfs, of lists of stores and of the files that name them.
    if !at.as_os_str().as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"/-_.".contains(b)) {
        return Err(fault("give a path of letters, digits, - _ . and /"));
    }
    match at.canonicalize() {
        Ok(at) => Ok(at),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(at.components().collect()),
        Err(e) => Err(failed("resolving", at)(e)),
    }
}

/// Where `volume` is already, or the first free place.
pub(super) fn choose(volume: &Path, known: &[Attachment]) -> Result<PathBuf, Error> {
    if let Some(record) = known.iter().find(|record| record.volume == volume) {
        return Ok(record.at.clone());
    }
    let places = (1..=MOST).map(|number| match number {
        1 => PathBuf::from(DEFAULT),
        number => PathBuf::from(format!("{DEFAULT}{number}")),
    });
    let free = |at: &PathBuf| known.iter().all(|record| record.at != *at) && check_empty(at).is_ok();
    let mut free_places = places.filter(free);
    free_places
        .next()
        .ok_or(Error::At { at: DEFAULT.into(), fault: "all places are taken: give one with --at" })
}

/// Where the image store that is made of the volume at `at` lies. Short as well.
pub(super) fn store(at: &Path) -> PathBuf {
    let mut path = at.as_os_str().to_owned();
    path.push(".s");
    path.into()
}

/// Whether something is mounted there.
pub(super) fn is_mounted(at: &Path) -> Result<bool, Error> {
    match Dir::open(at) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => {
            let dir = other.map_err(failed("opening", at))?;
            mount::is_mount_point(&dir).map_err(failed("examining", at))
        }
    }
}

/// That a mount there would hide nothing.
pub(super) fn check_empty(at: &Path) -> Result<(), Error> {
    match skeleton::is_all(at) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("listing", at)(e)),
        Ok(true) if !is_mounted(at)? => Ok(()),
        Ok(_) => Err(Error::Foreign(at.to_owned())),
    }
}

/// Creates the directory to mount at. Every user of the host can enter it: what is mounted there is for all to read.
pub(super) fn make(at: &Path) -> Result<(), Error> {
    dir::create_all(at, 0o755).map_err(failed("creating", at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;

    #[test]
    fn places_have_one_form() {
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
