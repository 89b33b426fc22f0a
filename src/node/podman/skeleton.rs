//! An empty image store, in the directory over which the real one is mounted.
//!
//! containers/storage before 1.50 fails completely if a configured store is missing, or is empty and
//! read-only: `podman images` prints `can't stat imageStore dir`, or `creating locker directory: … read-only
//! file system` (podman 4.3.1). With these directories and lock files, a store that is not mounted is just
//! empty.

use std::io;
use std::path::Path;

use larder_model::io_error::{Context as _, IoError};
use larder_sys::Dir;

/// The directories, and their lock files.
const PARTS: [(&str, Option<&str>); 3] =
    [("overlay", None), ("overlay-images", Some("images.lock")), ("overlay-layers", Some("layers.lock"))];

/// Creates a world-readable skeleton in the directory `at`, before anything is mounted there. Existing files
/// are kept.
///
/// # Errors
///
/// A directory or lock file cannot be created.
pub fn make(at: &Path) -> Result<(), IoError> {
    let creating = |done: io::Result<()>| done.context("creating an empty image store in", at.display());
    let dir = Dir::open(at).context("opening", at.display())?;
    for (name, lock) in PARTS {
        let part = dir
            .ensure_dir(name.as_bytes(), 0o755)
            .context("creating an empty image store in", at.display())?;
        // The mode must not depend on the umask.
        creating(dir.set_mode(name.as_bytes(), 0o755))?;
        let Some(lock) = lock else { continue };
        match part.create_file(lock.as_bytes(), 0o644) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => creating(made.and_then(|file| larder_sys::dir::set_mode(&file, 0o644)))?,
        }
    }
    Ok(())
}

/// Reports whether the directory `at` is empty, or contains only a skeleton.
///
/// # Errors
///
/// The directory cannot be read.
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

/// Removes the skeleton, after the unmount. Other files are kept.
///
/// # Errors
///
/// A directory or lock file cannot be removed.
pub fn remove(at: &Path) -> Result<(), IoError> {
    let failed = |source| IoError::new("removing the empty image store in", at.display(), source);
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
            // The directory contains files of others.
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
    fn create_and_remove() {
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
