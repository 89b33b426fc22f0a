//! Uploaded archives, which are stored next to the volumes made from them. Blocking.
//!
//! An archive has no name until it is complete and flushed, so a disconnected client or a crashed daemon
//! leaves no file. A named archive waits for the builder and is deleted when no work needs it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use larder_model::image_cache::CacheId;
use larder_sys::{Dir, space, unnamed};

/// The directory of uploaded archives.
#[derive(Clone, Debug)]
pub struct Imports {
    dir: PathBuf,
}

impl Imports {
    /// Opens the archives in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Imports { dir }
    }

    /// Returns the path of a cache's archive.
    pub fn path(&self, id: &CacheId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Creates an empty archive for the cache `id`.
    ///
    /// # Errors
    /// Fails if the file cannot be created.
    pub fn begin(&self, id: CacheId) -> io::Result<Spool> {
        let dir = Dir::open(&self.dir)?;
        if let Some(file) = unnamed::create(&dir, 0o600)? {
            return Ok(Spool { dir, id, file, named: false });
        }
        let file = dir.create_file(id.to_string().as_bytes(), 0o600)?;
        Ok(Spool { dir, id, file, named: true })
    }

    /// Lists the caches that have an archive. Files with other names are ignored.
    ///
    /// # Errors
    /// Fails if the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<CacheId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<CacheId>().ok()));
        }
        Ok(found)
    }

    /// Deletes the archive of a cache, if it exists.
    ///
    /// # Errors
    /// Fails if the file exists and cannot be deleted.
    pub fn remove(&self, id: &CacheId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// An archive that is being received. Dropping it before [`keep`](Spool::keep) leaves no file.
#[derive(Debug)]
pub struct Spool {
    dir: Dir,
    id: CacheId,
    file: File,
    /// `true` if the file has its name already and must be deleted on drop.
    named: bool,
}

impl Spool {
    /// Returns the free bytes of the file system.
    ///
    /// # Errors
    /// Fails if the file system cannot be queried.
    pub fn free(&self) -> io::Result<u64> {
        space::free(&self.dir)
    }

    /// Appends `bytes` to the archive.
    ///
    /// # Errors
    /// Fails if the write fails, for example because the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Flushes the archive and gives it its permanent name.
    ///
    /// # Errors
    /// Fails if the archive cannot be flushed or named.
    pub fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.named {
            unnamed::link(&self.file, &self.dir, self.id.to_string().as_bytes())?;
            self.named = true;
        }
        self.dir.sync()?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.named
            && let Err(error) = self.dir.unlink(self.id.to_string().as_bytes())
        {
            tracing::warn!(archive = %self.id, %error, "cannot remove an incomplete archive");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_archives_have_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let imports = Imports::new(dir.path().to_owned());
        fs::write(dir.path().join("other"), "x").unwrap();
        let (one, two, three) = (CacheId::random(), CacheId::random(), CacheId::random());
        let mut whole = imports.begin(one).unwrap();
        let mut incomplete = imports.begin(two).unwrap();
        whole.write(b"a").unwrap();
        incomplete.write(b"b").unwrap();
        assert_eq!(imports.list().unwrap(), []);
        whole.keep().unwrap();
        drop(incomplete);
        // As on a file system without unnamed files.
        let file = Dir::open(dir.path()).unwrap();
        let named = file.create_file(three.to_string().as_bytes(), 0o600).unwrap();
        drop(Spool { dir: file, id: three, file: named, named: true });
        assert_eq!(imports.list().unwrap(), [one]);
        assert_eq!(fs::read(imports.path(&one)).unwrap(), b"a");
        for _ in 0..2 {
            imports.remove(&one).unwrap();
        }
        assert_eq!(imports.list().unwrap(), []);
    }
}
