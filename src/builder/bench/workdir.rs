//! The directory for all files of one run of the benchmark. It is removed after the last run.
//!
//! ```text
//! DIR/larder-bench-<UUID>/   mode 0700
//!     layout/                the image as an OCI image layout, blobs as received
//!     volume/                the volume that is built of it
//!     names/                 empty files
//!     bytes/                 files of 64 MiB
//! ```
//! Nothing in it is removed before the end: an ext4 without a journal is slow to create files if others were
//! just removed.

use std::io;
use std::path::{Path, PathBuf};

use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::io_error::{FileRole, class};
use larder_model::size::ByteSize;
use larder_sys::{Dir, remove, space};

const LAYOUT: &str = "layout";
const VOLUME: &str = "volume";
const NAMES: &[u8] = b"names";
const BYTES: &[u8] = b"bytes";

/// The directory, accessible only to this user.
#[derive(Debug)]
pub(super) struct WorkDir {
    parent: Dir,
    /// Path of the parent in messages.
    shown: String,
    name: String,
    dir: Dir,
    path: PathBuf,
}

impl WorkDir {
    /// Creates it in `parent`, which must exist.
    pub(super) fn make(parent: &Path) -> Result<Self, Failure> {
        let shown = parent.display().to_string();
        let opening = |source: io::Error| {
            let message = format!(
                "opening {shown}: {source}: give --dir an existing directory on the file system to measure"
            );
            Failure::job(class(&source, FileRole::Given), message)
        };
        let dir = Dir::open(parent).map_err(opening)?;
        // The name is random. If it exists nevertheless, creating the directory fails.
        let name = format!("larder-bench-{}", uuid::Uuid::new_v4());
        let path = parent.join(&name);
        dir.make_dir(name.as_bytes(), 0o700).map_err(|e| failed("creating", &path, &e))?;
        let own = dir.open_dir(name.as_bytes()).map_err(|e| failed("opening", &path, &e))?;
        Ok(WorkDir { parent: dir, shown, name, dir: own, path })
    }

    /// Creates the directory of the layout.
    pub(super) fn make_layout(&self) -> Result<Dir, Failure> {
        self.make_dir(LAYOUT.as_bytes())
    }

    /// Returns the path of the layout.
    pub(super) fn layout(&self) -> PathBuf {
        self.path.join(LAYOUT)
    }

    /// Returns the path of the volume, which its build creates.
    pub(super) fn volume(&self) -> PathBuf {
        self.path.join(VOLUME)
    }

    /// Creates the directory for empty files.
    pub(super) fn make_names(&self) -> Result<Dir, Failure> {
        self.make_dir(NAMES)
    }

    /// Creates the directory for files of 64 MiB.
    pub(super) fn make_bytes(&self) -> Result<Dir, Failure> {
        self.make_dir(BYTES)
    }

    fn make_dir(&self, name: &[u8]) -> Result<Dir, Failure> {
        let made = self.dir.make_dir(name, 0o700).and_then(|()| self.dir.open_dir(name));
        made.map_err(|e| failed("creating a directory in", &self.path, &e))
    }

    /// Returns the free space of the file system in bytes.
    pub(super) fn free(&self) -> Result<u64, Failure> {
        space::free(&self.dir).map_err(|e| failed("reading the free space of", &self.path, &e))
    }

    /// Fails if less than `need` bytes are free. `what` names the purpose.
    pub(super) fn require(&self, need: u64, what: &str) -> Result<(), Failure> {
        let have = self.free()?;
        if have >= need {
            return Ok(());
        }
        let (dir, have, need) = (&self.shown, ByteSize(have), ByteSize(need));
        let message = format!(
            "{need} are needed for {what}, but the file system of {dir} has only {have} free: free some space, or \
             give --dir on a larger file system"
        );
        Err(Failure::job(Class::NoSpace, message))
    }

    /// Syncs the file system of the directory.
    pub(super) fn sync(&self) -> Result<(), Failure> {
        self.dir.sync_file_system().map_err(|e| failed("flushing the file system of", &self.path, &e))
    }

    /// Removes the directory. A failure is only logged.
    pub(super) fn remove(&self) {
        if let Err(error) = remove::tree(&self.parent, self.name.as_bytes()) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the files of the benchmark");
        }
    }
}

/// Creates the failure for a system call.
pub(super) fn failed(doing: &str, what: &Path, error: &io::Error) -> Failure {
    Failure::job(class(error, FileRole::Own), format!("{doing} {}: {error}", what.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_private_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let workdir = WorkDir::make(dir.path()).unwrap();
        let mode = fs::metadata(&workdir.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        workdir.make_layout().unwrap().make_dir(b"blobs", 0o755).unwrap();
        fs::write(workdir.layout().join("blobs/a"), "a").unwrap();
        workdir.make_names().unwrap();
        workdir.sync().unwrap();
        workdir.remove();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_parent_and_too_little_space_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let fail = WorkDir::make(&dir.path().join("none")).unwrap_err();
        assert_eq!(fail.class, Class::Invalid);
        assert!(fail.message.contains("--dir"), "{}", fail.message);
        let workdir = WorkDir::make(dir.path()).unwrap();
        workdir.require(1, "a byte").unwrap();
        let fail = workdir.require(u64::MAX, "a volume").unwrap_err();
        assert_eq!(fail.class, Class::NoSpace);
        assert!(fail.message.contains("needed for a volume"), "{}", fail.message);
        workdir.remove();
    }
}
