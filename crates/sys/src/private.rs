//! Files and directories that only their owner can open.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Dir, process};

/// A private file was not read, for example because its mode is too permissive.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The mode of the file gives access to other users.
    #[error("its mode is {mode:04o}, so other users can read or change it: run chmod 600")]
    Open {
        /// Permission bits of the file.
        mode: u32,
    },
    /// The file cannot be read, is too long, or is not a regular file.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the regular file at `path` of at most `limit` bytes, following links.
///
/// The rule is that of ssh: a file of this user must not be accessible to the group. A file of another user
/// can be readable by the group, such as a Secret that Kubernetes gives to the group of a pod. No file can be
/// accessible to others.
///
/// # Errors
/// [`ReadError`] if the file is too long, not regular, or accessible to others.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let (file, exposed) = open(path)?;
    if let Some(exposed) = exposed {
        return Err(exposed);
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::Io(Errno::EFBIG.into()));
    }
    Ok(bytes)
}

/// Opens the regular file at `path`, following links, and also returns the reason for which [`read`] would
/// refuse it.
///
/// # Errors
/// Those of open(2); `InvalidInput` if it is not a regular file.
pub fn open(path: &Path) -> io::Result<(File, Option<ReadError>)> {
    // Do not block on a pipe without a writer.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let (mode, own) = (facts.mode() & 0o7777, facts.uid() == process::ids().0);
    let exposed = mode & if own { 0o077 } else { 0o037 } != 0;
    Ok((file, exposed.then_some(ReadError::Open { mode })))
}

/// Creates the file at `path` durably, with mode 0600 from the start. It must not exist.
///
/// # Errors
/// Those of open(2), write(2) and fsync(2).
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
    if written.is_err() {
        // Delete a partial file, because it is useless and would make the next attempt fail.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Creates the directory at `path` with mode 0700, regardless of the umask, and returns whether it is new.
/// The parent must exist.
///
/// # Errors
/// Those of mkdir(2), except `EEXIST`: an existing name is not changed.
pub fn create_dir(path: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    Dir::open(parent)?.sync()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_private_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(create(&path, b"other").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path, 6).unwrap(), b"secret");
        assert!(
            matches!(read(&path, 5), Err(ReadError::Io(e)) if e.raw_os_error() == Some(Errno::EFBIG as i32))
        );
        for mode in [0o640, 0o604, 0o620, 0o601, 0o666, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(
                matches!(read(&path, 6), Err(ReadError::Open { mode: found }) if found == mode),
                "{mode:o}"
            );
            assert!(matches!(open(&path).unwrap().1, Some(ReadError::Open { mode: found }) if found == mode));
        }
        fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        assert!(open(&path).unwrap().1.is_none());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link, 6).unwrap(), b"secret");
        assert!(matches!(read(dir.path(), 6), Err(ReadError::Io(_))));
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(read(&pipe, 6), Err(ReadError::Io(_))));
    }

    #[test]
    fn a_file_of_another_user_can_be_group_readable() {
        if process::ids().0 != 0 {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"secret").unwrap();
        std::os::unix::fs::chown(&path, Some(65532), None).unwrap();
        for (mode, may) in [(0o440, true), (0o640, true), (0o660, false), (0o444, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, 6).is_ok(), may, "{mode:o}");
        }
    }
}
