//! The directory in which everything is made, and which is gone afterwards.
//!
//! ```text
//! DIR/larder-bench-<UUID>/   mode 0700
//!     layout/                the image as an OCI image layout, blobs as they came
//!     volume/                what is built of it
//!     names/                 empty files
//!     bytes/                 files of 64 MiB
//! ```
//! Nothing of it is removed before the end: an ext4 without a journal is slow to make files where others were just removed.

use std::io;
use std::path::{Path, PathBuf};

use crate::builder::failure::Fail;
use larder_model::class::Class;
use larder_model::size::ByteSize;
use larder_sys::space;
use larder_sys::{Dir, remove};

const LAYOUT: &str = "layout";
const VOLUME: &str = "volume";
const NAMES: &[u8] = b"names";
const BYTES: &[u8] = b"bytes";

/// The directory, for this process alone.
#[derive(Debug)]
pub(super) struct Place {
    parent: Dir,
    /// How messages call the parent.
    shown: String,
    name: String,
    dir: Dir,
    path: PathBuf,
}

impl Place {
    /// Makes it in `parent`, which is there already.
    pub(super) fn make(parent: &Path) -> Result<Self, Fail> {
        let shown = parent.display().to_string();
        let opening = |source: io::Error| {
            let class = match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Class::Invalid,
                _ => class(&source),
            };
            let message = format!(
                "opening {shown}: {source}: give --dir a directory on the file system to be measured"
            );
            Fail::job(class, message)
        };
        let dir = Dir::open(parent).map_err(opening)?;
        // It exists only if somebody can guess at random; then making it fails.
        let name = format!("larder-bench-{}", uuid::Uuid::new_v4());
        let path = parent.join(&name);
        dir.make_dir(name.as_bytes(), 0o700).map_err(|e| failed("creating", &path, &e))?;
        let own = dir.open_dir(name.as_bytes()).map_err(|e| failed("opening", &path, &e))?;
        Ok(Place { parent: dir, shown, name, dir: own, path })
    }

    /// The directory of the layout, made anew.
    pub(super) fn make_layout(&self) -> Result<Dir, Fail> {
        self.make_dir(LAYOUT.as_bytes())
    }

    /// The path of the layout.
    pub(super) fn layout(&self) -> PathBuf {
        self.path.join(LAYOUT)
    }

    /// The path of the volume, which its build makes.
    pub(super) fn volume(&self) -> PathBuf {
        self.path.join(VOLUME)
    }

    /// The directory for empty files, made anew.
    pub(super) fn make_names(&self) -> Result<Dir, Fail> {
        self.make_dir(NAMES)
    }

    /// The directory for files of 64 MiB, made anew.
    pub(super) fn make_bytes(&self) -> Result<Dir, Fail> {
        self.make_dir(BYTES)
    }

    fn make_dir(&self, name: &[u8]) -> Result<Dir, Fail> {
        let made = self.dir.make_dir(name, 0o700).and_then(|()| self.dir.open_dir(name));
        made.map_err(|e| failed("creating a directory in", &self.path, &e))
    }

    /// Bytes that are free.
    pub(super) fn free(&self) -> Result<u64, Fail> {
        space::free(&self.dir).map_err(|e| failed("asking for the free space of", &self.path, &e))
    }

    /// Refuses what there is no room for. `what` says what is yet to come.
    pub(super) fn require(&self, need: u64, what: &str) -> Result<(), Fail> {
        let have = self.free()?;
        if have >= need {
            return Ok(());
        }
        let (dir, have, need) = (&self.shown, ByteSize(have), ByteSize(need));
        let message = format!(
            "the file system of {dir} has {have} free, and {need} are needed for {what}: free some, or give --dir on a larger \
             one"
        );
        Err(Fail::job(Class::NoSpace, message))
    }

    /// Has the file system write down all that was done so far.
    pub(super) fn sync(&self) -> Result<(), Fail> {
        self.dir.sync_file_system().map_err(|e| failed("flushing the file system of", &self.path, &e))
    }

    /// The end. What cannot be removed is left, with a word about it.
    pub(super) fn remove(&self) {
        if let Err(error) = remove::tree(&self.parent, self.name.as_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "removing what the benchmark made");
        }
    }
}

/// A system call failed.
pub(super) fn failed(doing: &str, what: &Path, error: &io::Error) -> Fail {
    Fail::job(class(error), format!("{doing} {}: {error}", what.display()))
}

fn class(error: &io::Error) -> Class {
    larder_layer::error::io_class(error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn nobody_else_gets_in_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::make(dir.path()).unwrap();
        let mode = fs::metadata(&place.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        place.make_layout().unwrap().make_dir(b"blobs", 0o755).unwrap();
        fs::write(place.layout().join("blobs/a"), "a").unwrap();
        place.make_names().unwrap();
        place.sync().unwrap();
        place.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_there_and_what_does_not_fit_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let fail = Place::make(&dir.path().join("none")).unwrap_err();
        assert_eq!(fail.class, Class::Invalid);
        assert!(fail.message.contains("--dir"), "{}", fail.message);
        let place = Place::make(dir.path()).unwrap();
        place.require(1, "a byte").unwrap();
        let fail = place.require(u64::MAX, "a volume").unwrap_err();
        assert_eq!(fail.class, Class::NoSpace);
        assert!(fail.message.contains("needed for a volume"), "{}", fail.message);
        place.remove();
    }
}
