//! An image store of nothing, in the directory over which one is mounted.
//!
//! A store that is configured and not there stops containers/storage before 1.50 altogether, and so does one that is empty and
//! cannot be written to: `podman images` says `can't stat imageStore dir`, or `creating locker directory: … read-only file
//! system` (podman 4.3.1). With these directories and lock files a store that is not mounted has no images, and that is all.

use std::io;
use std::path::{Path, PathBuf};

use larder_sys::Dir;

/// Directories, and the lock files in them.
const PARTS: [(&str, Option<&str>); 3] =
    [("overlay", None), ("overlay-images", Some("images.lock")), ("overlay-layers", Some("layers.lock"))];

/// A skeleton cannot be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}: {source}", path.display())]
pub struct Error {
    /// What was being done.
    pub doing: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// Makes it in the directory `at`, before anything is mounted there, for everybody to read. What is there is left.
pub fn make(at: &Path) -> Result<(), Error> {
    let failed = |doing| move |source| Error { doing, path: at.to_owned(), source };
    let dir = Dir::open(at).map_err(failed("opening"))?;
    for (name, lock) in PARTS {
        let part =
            dir.ensure_dir(name.as_bytes(), 0o755).map_err(failed("making an empty image store in"))?;
        // Whatever the umask is.
        dir.set_mode(name.as_bytes(), 0o755).map_err(failed("making an empty image store in"))?;
        let Some(lock) = lock else { continue };
        match part.create_file(lock.as_bytes(), 0o644) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => made
                .and_then(|file| larder_sys::dir::set_mode(&file, 0o644))
                .map_err(failed("making an empty image store in"))?,
        }
    }
    Ok(())
}

/// Whether the directory `at` is empty, or holds nothing but a skeleton.
pub fn is_all(at: &Path) -> io::Result<bool> {
    let dir = Dir::open(at)?;
    for name in dir.names()? {
        let Some((_, lock)) = PARTS.iter().find(|(part, _)| part.as_bytes() == name) else {
            return Ok(false);
        };
        let Ok(part) = dir.open_dir(&name) else { return Ok(false) };
        if !part.names()?.iter().all(|name| lock.is_some_and(|lock| lock.as_bytes() == name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes it, after what was mounted there is gone. What else is there is left.
pub fn remove(at: &Path) -> Result<(), Error> {
    let failed = |source| Error { doing: "removing the empty image store in", path: at.to_owned(), source };
    let dir = match Dir::open(at) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for (name, lock) in PARTS {
        let Ok(part) = dir.open_dir(name.as_bytes()) else { continue };
        if let Some(lock) = lock {
            absent_or(part.unlink(lock.as_bytes())).map_err(failed)?;
        }
        match dir.remove_dir(name.as_bytes()) {
            // Somebody else's.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            other => absent_or(other).map_err(failed)?,
        }
    }
    Ok(())
}

fn absent_or(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn it_comes_and_goes() {
        let at = std::env::temp_dir().join(format!("larder-skeleton-{}", std::process::id()));
        let _ = fs::remove_dir_all(&at);
        fs::create_dir(&at).unwrap();
        for _ in 0..2 {
            make(&at).unwrap();
            assert!(at.join("overlay-layers/layers.lock").is_file() && at.join("overlay").is_dir());
            assert!(is_all(&at).unwrap());
        }
        fs::write(at.join("overlay-images/images.json"), "[]").unwrap();
        assert!(!is_all(&at).unwrap());
        for _ in 0..2 {
            remove(&at).unwrap();
            let left: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["overlay-images"]);
        }
        fs::remove_dir_all(&at).unwrap();
        remove(&at).unwrap();
        assert_eq!(make(&at).unwrap_err().source.kind(), io::ErrorKind::NotFound);
    }
}
