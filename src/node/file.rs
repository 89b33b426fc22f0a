//! Files of ours beside the configuration of others: written whole, removed whole, never edited.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use larder_model::class::Class;
use larder_sys::{Dir, atomic, dir};

/// How each of them begins, so that nobody else's is taken for one.
pub const MARK: &str =
    "# Written by larder; `larder attach` and `larder detach` keep it. Other changes are lost.\n";

/// Most bytes that such a file has: what it repeats of somebody else's, and a line for each volume.
const MAX: u64 = 4 << 20;

/// A file is not written or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is somebody else's.
    #[error("{} is not larder's (its first line does not say so): move it away, or put what it says elsewhere", .0.display())]
    NotOurs(PathBuf),
    /// The kernel refused.
    #[error("{doing} {}: {source}", what.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::NotOurs(_) => Class::Conflict,
            Error::Io { source, .. } => larder_layer::error::io_class(source),
        }
    }
}

fn failed(doing: &'static str, what: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Io { doing, what, source }
}

/// A file and what it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where, for this process.
    pub path: PathBuf,
    /// All of it, which begins with [`MARK`]; none: it is to go.
    pub text: Option<String>,
    /// Its mode.
    pub mode: u32,
    /// The same text without what may be a credential, where it has any.
    pub shown: Option<String>,
    /// A symbolic link to it by which others find it.
    pub link: Option<PathBuf>,
}

impl File {
    /// A file with a text, for everybody to read, or one that is to go.
    pub fn new(path: PathBuf, text: Option<String>) -> Self {
        File { path, text, mode: 0o644, shown: None, link: None }
    }

    /// Whether something has to be done.
    pub fn differs(&self) -> Result<bool, Error> {
        Ok(self.read()? != self.text || self.is_unlinked())
    }

    fn is_unlinked(&self) -> bool {
        let there = self.link.as_ref().map(|link| fs::read_link(link).ok());
        there.is_some_and(|target| (target.as_deref() == Some(&self.path)) != self.text.is_some())
    }

    /// What it is now; none where it is not there.
    fn read(&self) -> Result<Option<String>, Error> {
        let Some((dir, name)) = self.open()? else { return Ok(None) };
        let bytes = match dir.read_file(name.as_bytes(), MAX) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("reading", &self.path))?,
        };
        match String::from_utf8(bytes) {
            Ok(text) if text.starts_with(MARK) => Ok(Some(text)),
            _ => Err(Error::NotOurs(self.path.clone())),
        }
    }

    /// Makes it what it is to be, durably.
    pub fn write(&self) -> Result<(), Error> {
        if !self.differs()? {
            return Ok(());
        }
        let Some(text) = &self.text else { return self.remove() };
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        dir::create_all(parent, 0o755).map_err(failed("creating", parent))?;
        if let Some((dir, name)) = self.open()? {
            let written = atomic::write(&dir, name.as_bytes(), text.as_bytes(), self.mode);
            written.map_err(failed("writing", &self.path))?;
        }
        if let Some(link) = &self.link {
            let parent = link.parent().unwrap_or(Path::new("/"));
            dir::create_all(parent, 0o755).map_err(failed("creating", parent))?;
            remove(link)?;
            std::os::unix::fs::symlink(&self.path, link).map_err(failed("linking", link))?;
        }
        Ok(())
    }

    fn remove(&self) -> Result<(), Error> {
        if let Some(link) = &self.link {
            remove(link)?;
            // Made for the link; others can have theirs in it.
            let _ = fs::remove_dir(link.parent().unwrap_or(link));
        }
        remove(&self.path)
    }

    fn open(&self) -> Result<Option<(Dir, &OsStr)>, Error> {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(None) };
        match Dir::open(parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some((other.map_err(failed("opening", parent))?, name))),
        }
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(e)),
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
    fn what_is_not_ours_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.conf");
        fs::write(&path, "y = 2\n").unwrap();
        for file in [File::new(path.clone(), Some(format!("{MARK}x = 1\n"))), File::new(path.clone(), None)] {
            assert!(matches!(file.write(), Err(Error::NotOurs(_))));
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "y = 2\n");
    }
}
