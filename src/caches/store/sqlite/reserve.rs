//! Disk space reserved for deletions. Without it, a full disk would prevent every write, so nothing could be
//! deleted and the disk would stay full.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Size of the reserve, bytes. A deletion writes a few database pages twice, so this is enough for a hundred.
const SIZE: usize = 1 << 20;

/// The reserve: a file of padding next to the database.
#[derive(Clone, Debug)]
pub(super) struct Reserve(PathBuf);

impl Reserve {
    /// Returns the reserve of the database at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push("-reserve");
        Reserve(name.into())
    }

    /// Creates the file if it is missing. A failure is ignored, because a full disk is reported elsewhere.
    pub(super) fn keep(&self) {
        if fs::symlink_metadata(&self.0).is_ok_and(|meta| meta.len() == SIZE as u64) {
            return;
        }
        if let Err(error) = self.make() {
            tracing::debug!(%error, "cannot reserve disk space for deletions");
            // A partial file is useless.
            let _ = fs::remove_file(&self.0);
        }
    }

    fn make(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0)?;
        file.write_all(&vec![0; SIZE])?;
        file.sync_all()
    }

    /// Frees the space for the next write. Returns `false` if the file does not exist.
    pub(super) fn give(&self) -> bool {
        let given = fs::remove_file(&self.0).is_ok();
        if given {
            tracing::warn!("the disk of the records is full: using the space reserved for deletions");
        }
        given
    }
}
