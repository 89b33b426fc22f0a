//! Files that Larder adds next to other programs' configuration. They are written and removed as a whole, and
//! never edited.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use larder_model::class::Class;
use larder_model::io_error::{Context as _, FileRole, IoError};
use larder_sys::{Dir, atomic, dir};

/// The first line of each of these files. Files without it belong to others.
pub const MARK: &str =
    "# Written by larder; `larder attach` and `larder detach` keep it. Other changes are lost.\n";

/// Maximum size of such a file, bytes. It can repeat other files, and has a line for each volume.
const MAX: u64 = 4 << 20;

/// The errors of writing and removing a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file was not written by Larder.
    #[error("{} was not written by larder (it lacks larder's first line): move it away, or move its settings to another file", .0.display())]
    NotOurs(PathBuf),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl Error {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::NotOurs(_) => Class::Conflict,
            Error::Io(error) => error.class(FileRole::Own),
        }
    }
}

/// A file and its required content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path of the file for this process.
    pub path: PathBuf,
    /// The whole text, which starts with [`MARK`]; `None` to remove the file.
    pub text: Option<String>,
    /// The mode of the file.
    pub mode: u32,
    /// The text without possible credentials, if it has any.
    pub shown: Option<String>,
    /// A symbolic link to the file, by which other programs find it.
    pub link: Option<PathBuf>,
}

impl File {
    /// Creates a world-readable file with a text, or a file to be removed.
    pub fn new(path: PathBuf, text: Option<String>) -> Self {
        File { path, text, mode: 0o644, shown: None, link: None }
    }

    /// Reports whether the file on disk differs.
    ///
    /// # Errors
    ///
    /// The file was not written by Larder, or cannot be read.
    pub fn differs(&self) -> Result<bool, Error> {
        Ok(self.read()? != self.text || self.is_unlinked())
    }

    fn is_unlinked(&self) -> bool {
        let there = self.link.as_ref().map(|link| fs::read_link(link).ok());
        there.is_some_and(|target| (target.as_deref() == Some(&self.path)) != self.text.is_some())
    }

    /// Returns the current text. `None` if the file does not exist.
    fn read(&self) -> Result<Option<String>, Error> {
        let Some((dir, name)) = self.open()? else { return Ok(None) };
        let bytes = match dir.read_file(name.as_bytes(), MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.context("reading", self.path.display())?,
        };
        match String::from_utf8(bytes) {
            Ok(text) if text.starts_with(MARK) => Ok(Some(text)),
            _ => Err(Error::NotOurs(self.path.clone())),
        }
    }

    /// Writes or removes the file, durably.
    ///
    /// # Errors
    ///
    /// The file was not written by Larder, or a system call failed.
    pub fn write(&self) -> Result<(), Error> {
        if !self.differs()? {
            return Ok(());
        }
        let Some(text) = &self.text else { return self.remove() };
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        dir::create_all(parent, 0o755).context("creating", parent.display())?;
        if let Some((dir, name)) = self.open()? {
            let written = atomic::write(&dir, name.as_bytes(), text.as_bytes(), self.mode);
            written.context("writing", self.path.display())?;
        }
        if let Some(link) = &self.link {
            let parent = link.parent().unwrap_or(Path::new("/"));
            dir::create_all(parent, 0o755).context("creating", parent.display())?;
            remove(link)?;
            std::os::unix::fs::symlink(&self.path, link).context("linking", link.display())?;
        }
        Ok(())
    }

    fn remove(&self) -> Result<(), Error> {
        if let Some(link) = &self.link {
            remove(link)?;
            // The directory was created for the link. If it contains other links, removing it fails.
            let _ = fs::remove_dir(link.parent().unwrap_or(link));
        }
        remove(&self.path)
    }

    fn open(&self) -> Result<Option<(Dir, &OsStr)>, Error> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(None) };
        match Dir::open(parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some((other.context("opening", parent.display())?, name))),
        }
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(IoError::new("removing", path.display(), e).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_again_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.conf");
        let link = dir.path().join("wants/b.conf");
        let file =
            File { link: Some(link.clone()), ..File::new(path.clone(), Some(format!("{MARK}x = 1\n"))) };
        assert!(file.differs().unwrap());
        for _ in 0..2 {
            file.write().unwrap();
            assert!(!file.differs().unwrap());
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), format!("{MARK}x = 1\n"));
        let gone = File { link: Some(link.clone()), ..File::new(path.clone(), None) };
        for _ in 0..2 {
            gone.write().unwrap();
        }
        assert!(!path.exists() && !link.parent().unwrap().exists());
    }

    #[test]
    fn files_of_others_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.conf");
        fs::write(&path, "y = 2\n").unwrap();
        for file in [File::new(path.clone(), Some(format!("{MARK}x = 1\n"))), File::new(path.clone(), None)] {
            assert!(matches!(file.write(), Err(Error::NotOurs(_))));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "y = 2\n");
    }
}
