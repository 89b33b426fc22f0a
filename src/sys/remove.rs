//! Removing trees.

use std::io;

use super::dir::{self, Dir};

/// Removes `name` and everything below it; a name that is not there is no error.
///
/// Works from descriptors without recursion, so neither depth nor the length of a path matters.
pub fn tree(parent: &Dir, name: &[u8]) -> io::Result<()> {
    match parent.unlink(name) {
        Err(e) if is_directory(&e) => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => return Ok(()),
    }
    let mut stack = vec![Doomed::open(parent, name)?];
    while let Some(doomed) = stack.last_mut() {
        if let Some(name) = doomed.directories.pop() {
            let child = Doomed::open(&doomed.dir, &name)?;
            stack.push(child);
        } else if let Some(doomed) = stack.pop() {
            stack.last().map_or(parent, |above| &above.dir).remove_dir(&doomed.name)?;
        }
    }
    Ok(())
}

/// A directory in which only directories are left.
struct Doomed {
    name: Vec<u8>,
    dir: Dir,
    directories: Vec<Vec<u8>>,
}

impl Doomed {
    fn open(parent: &Dir, name: &[u8]) -> io::Result<Self> {
        let dir = match parent.open_dir(name) {
            // Modes come from images; a builder without CAP_DAC_OVERRIDE has to open up its own directories.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                parent.set_mode(name, 0o700)?;
                parent.open_dir(name)?
            }
            other => other?,
        };
        if dir.stat_self()?.mode & 0o700 != 0o700 {
            dir::set_mode(&dir, 0o700)?;
        }
        let mut directories = Vec::new();
        for name in dir.names()? {
            match dir.unlink(&name) {
                Err(e) if is_directory(&e) => directories.push(name),
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(Doomed { name: name.to_vec(), dir, directories })
    }
}

/// unlink(2) of a directory is `EISDIR` on Linux and `EPERM` by POSIX.
fn is_directory(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::IsADirectory)
        || error.raw_os_error() == Some(nix::errno::Errno::EPERM as i32)
}
