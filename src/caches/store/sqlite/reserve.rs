//! Room that is kept for deletions. On a full disk no record can be written, so nothing could be deleted, and the disk would
//! stay full.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A deletion writes some pages of the database twice: this is enough for a hundred.
const SIZE: usize = 1 << 20;

/// A file of nothing beside the database.
#[derive(Clone, Debug)]
pub(super) struct Reserve(PathBuf);

impl Reserve {
    /// The one of the database at `path`.
    pub(super) fn of(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push("-reserve");
        Reserve(name.into())
    }

    /// Makes it where it is not there, and there is room. Whoever finds none has had worse news by then.
    pub(super) fn keep(&self) {
        if fs::symlink_metadata(&self.0).is_ok_and(|meta| meta.len() == SIZE as u64) {
            return;
        }
        if let Err(error) = self.make() {
            tracing::debug!(%error, "no room is kept for deletions");
            // A piece of it is none.
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

    /// Gives the room to whoever writes next; false where it is not there.
    pub(super) fn give(&self) -> bool {
        let given = fs::remove_file(&self.0).is_ok();
        if given {
            tracing::warn!("the disk of the records is full: what is kept for deletions is given to them");
        }
        given
    }
}
