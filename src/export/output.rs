//! Outputs that appear only once they are complete. They are written without a name, or under a temporary
//! one, and renamed at the end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use larder_model::io_error::Context as _;
use larder_sys::lock::DirLock;
use larder_sys::{Dir, FileType, remove, unnamed};

/// Path of an output, and whether it can be replaced.
#[derive(Debug)]
struct Destination {
    path: PathBuf,
    parent: Dir,
    name: Vec<u8>,
    force: bool,
}

impl Destination {
    fn new(path: &Path, force: bool) -> Result<Self, Error> {
        use std::os::unix::ffi::OsStrExt as _;
        let name = path.file_name().ok_or(io::Error::from(io::ErrorKind::InvalidInput));
        let name = name.context("writing to", path.display())?.as_bytes().to_vec();
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let parent = Dir::open(parent).context("opening", parent.display())?;
        Ok(Destination { path: path.to_owned(), parent, name, force })
    }

    fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// Reports whether the output exists. Fails if it cannot be replaced, or is not of type `wanted`.
    fn examine(&self, wanted: FileType) -> Result<bool, Error> {
        let Some(stat) = self.parent.try_stat(&self.name).context("examining", self.path.display())? else {
            return Ok(false);
        };
        if !self.force {
            return Err(self.exists());
        }
        let what = match stat.file_type {
            found if found == wanted => return Ok(true),
            FileType::Directory => "a directory",
            FileType::Regular => "a file",
            FileType::Symlink => "a symbolic link",
            _ => "a device, pipe or socket",
        };
        Err(Error::Irreplaceable { path: self.shown(), what })
    }

    fn exists(&self) -> Error {
        Error::Exists { path: self.shown() }
    }

    fn temporary(&self) -> Vec<u8> {
        [b".", &self.name[..], b".larder-tmp"].concat()
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Unfinished {
    destination: Destination,
    file: File,
    /// Temporary name of the file, if the file system does not support unnamed files.
    temporary: Option<Vec<u8>>,
}

impl Unfinished {
    /// Starts a file that is renamed to `path` at the end.
    ///
    /// # Errors
    /// The output exists and cannot be replaced, or the file cannot be created.
    pub(super) fn begin(path: &Path, force: bool) -> Result<Self, Error> {
        let destination = Destination::new(path, force)?;
        destination.examine(FileType::Regular)?;
        let creating = "creating a file in the directory of";
        if let Some(file) = unnamed::create(&destination.parent, 0o600).context(creating, path.display())? {
            return Ok(Unfinished { destination, file, temporary: None });
        }
        let temporary =
            [&destination.temporary()[..], format!("-{}", std::process::id()).as_bytes()].concat();
        let file = destination.parent.create_file(&temporary, 0o600).context(creating, path.display())?;
        Ok(Unfinished { destination, file, temporary: Some(temporary) })
    }

    /// Returns the file, for writing.
    pub(super) fn file(&self) -> Result<File, Error> {
        Ok(self.file.try_clone().context("opening", self.destination.shown())?)
    }

    /// Returns the directory of the output.
    pub(super) fn parent(&self) -> Result<Dir, Error> {
        Ok(self.destination.parent.try_clone().context("opening", self.destination.shown())?)
    }

    /// Flushes the file and gives it its name.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let shown = self.destination.shown();
        self.file.sync_all().context("flushing", &shown)?;
        let replaces = self.destination.examine(FileType::Regular)?;
        let Destination { parent, name, .. } = &self.destination;
        let named = match (self.temporary.take(), replaces) {
            (None, false) => unnamed::link(&self.file, parent, name),
            (None, true) => {
                let temporary = self.destination.temporary();
                // Left over from an export that was killed at exactly this point.
                let _ = parent.unlink(&temporary);
                unnamed::link(&self.file, parent, &temporary)
                    .and_then(|()| parent.rename(&temporary, parent, name))
            }
            (Some(temporary), false) => {
                let named = parent.rename_new(&temporary, parent, name);
                self.temporary = named.is_err().then_some(temporary);
                named
            }
            (Some(temporary), true) => {
                let named = parent.rename(&temporary, parent, name);
                self.temporary = named.is_err().then_some(temporary);
                named
            }
        };
        match named {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(self.destination.exists()),
            named => Ok(named.and_then(|()| parent.sync()).context("naming", shown)?),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // An earlier error is already being returned.
            let _ = self.destination.parent.unlink(temporary);
        }
    }
}

/// A directory that is being written. Only one process works on it; leftovers of an earlier one are removed.
#[derive(Debug)]
pub(super) struct Directory {
    destination: Destination,
    temporary: Option<Vec<u8>>,
    dir: Dir,
    _lock: DirLock,
}

impl Directory {
    /// Starts a directory that is renamed to `path` at the end.
    ///
    /// # Errors
    /// The output exists and cannot be replaced, another export is writing to it, or the directory cannot be
    /// created.
    pub(super) fn begin(path: &Path, force: bool) -> Result<Self, Error> {
        let destination = Destination::new(path, force)?;
        if destination.examine(FileType::Directory)? {
            refuse_other_than_layout(&destination)?;
        }
        let temporary = destination.temporary();
        let creating = "creating a directory next to";
        let dir = destination.parent.ensure_dir(&temporary, 0o700).context(creating, path.display())?;
        let lock = DirLock::try_exclusive(&dir).context("locking the directory next to", path.display())?;
        let lock = lock.ok_or_else(|| Error::Busy { path: destination.shown() })?;
        for name in dir.names().context("listing", "leftovers of an earlier export")? {
            remove::tree(&dir, &name).context("removing", "leftovers of an earlier export")?;
        }
        Ok(Directory { destination, temporary: Some(temporary), dir, _lock: lock })
    }

    /// Returns the directory, for writing.
    pub(super) fn dir(&self) -> Result<Dir, Error> {
        Ok(self.dir.try_clone().context("opening", self.destination.shown())?)
    }

    /// Gives the directory its name. Its content must be flushed.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let replaces = self.destination.examine(FileType::Directory)?;
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let Destination { parent, name, .. } = &self.destination;
        if replaces {
            refuse_other_than_layout(&self.destination)?;
            parent.exchange(&temporary[..], name).context("replacing", self.destination.shown())?;
            // The replaced directory now has the temporary name, and is removed when this value is dropped.
            return Ok(parent.sync().context("flushing the directory of", self.destination.shown())?);
        }
        match parent.rename_new(temporary, parent, name) {
            Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
                return Err(self.destination.exists());
            }
            named => named.context("naming", self.destination.shown())?,
        }
        self.temporary = None;
        Ok(self.destination.parent.sync().context("flushing the directory of", self.destination.shown())?)
    }
}

/// Fails unless the existing directory is an OCI layout: `--force` replaces nothing else.
fn refuse_other_than_layout(destination: &Destination) -> Result<(), Error> {
    let there = destination.parent.open_dir(&destination.name);
    let there =
        there.and_then(|dir| dir.try_stat(b"oci-layout")).context("examining", destination.shown())?;
    match there {
        Some(_) => Ok(()),
        None => Err(Error::Irreplaceable {
            path: destination.shown(),
            what: "a directory other than an OCI layout",
        }),
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // An earlier error is already being returned, and the next export removes the leftovers.
            let _ = remove::tree(&self.destination.parent, temporary);
        }
    }
}
