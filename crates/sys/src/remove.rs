//! Deletion of directory trees.

use std::io;

use super::dir::{self, Dir};
use super::walk::{Visitor, walk};

/// Deletes `name` and everything below it. A missing name is not an error.
///
/// # Errors
/// Those of unlink(2), rmdir(2), chmod(2) and of reading directories.
pub fn tree(parent: &Dir, name: &[u8]) -> io::Result<()> {
    match parent.unlink(name) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {}
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => return Ok(()),
    }
    make_accessible(parent, name)?;
    walk(parent.open_dir(name)?, &mut Removal)?;
    parent.remove_dir(name)
}

struct Removal;

impl Visitor for Removal {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, _: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut directories = Vec::new();
        for name in dir.names()? {
            match dir.unlink(&name) {
                Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                    make_accessible(dir, &name)?;
                    directories.push(name);
                }
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(directories)
    }

    fn leave(&mut self, parent: &Dir, name: &[u8]) -> io::Result<()> {
        parent.remove_dir(name)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}

/// Gives the owner all rights to a directory. Modes come from images, and a builder without
/// `CAP_DAC_OVERRIDE` could not delete the entries otherwise.
fn make_accessible(parent: &Dir, name: &[u8]) -> io::Result<()> {
    match parent.open_dir(name) {
        Ok(dir) if dir.stat_self()?.mode & 0o700 == 0o700 => Ok(()),
        Ok(dir) => dir::set_mode(&dir, 0o700),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => parent.set_mode(name, 0o700),
        Err(e) => Err(e),
    }
}
