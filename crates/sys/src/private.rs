//! Files and directories that only their owner can open.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{Dir, process};

/// A file is not read because of who else may.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its mode lets others in.
    #[error("its mode is {mode:04o}, which lets others read or change it: chmod 600")]
    Open {
        /// The mode.
        mode: u32,
    },
    /// The file system refuses, or it is too long or no regular file.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads the regular file at `path`, following links, of at most `limit` bytes.
///
/// As ssh does it: of one's own file the group may do nothing. With another's (a Secret that Kubernetes gives to the group of a
/// pod, a key that root gives to the group of a daemon) the group may read. Nobody else may do anything.
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

/// Opens the regular file at `path`, following links, and returns the reason for which [`read`] would refuse it.
///
/// # Errors
/// The file system refuses, or it is no regular file.
pub fn open(path: &Path) -> io::Result<(File, Option<ReadError>)> {
    // A pipe without a writer does not keep us.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"));
    }
    let (mode, own) = (facts.mode() & 0o7777, facts.uid() == process::ids().0);
    let exposed = mode & if own { 0o077 } else { 0o037 } != 0;
    Ok((file, exposed.then_some(ReadError::Open { mode })))
}

/// Creates the file at `path`, which must not exist, with mode 0600 from its first instant, durably.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
    if written.is_err() {
        // Half a key is of no use, and would be in the way of the next try.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Creates the directory at `path` with mode 0700, whatever the umask, and returns whether it is new. The parent must exist.
///
/// # Errors
/// Those of mkdir(2), except that the name may exist: then nothing is changed.
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
    fn only_what_is_private_is_read() {
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
    fn anothers_file_may_be_the_groups() {
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
