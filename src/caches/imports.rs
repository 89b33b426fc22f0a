//! Archives that tenants send, beside the volumes that are made of them. Blocking.
//!
//! An archive has no name until all of it is there and flushed: who hangs up, and a daemon that dies, leave nothing. With its
//! name it waits for the builder, and goes when there is no work left to do with it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use larder_model::image_cache::CacheId;
use larder_sys::{Dir, space, unnamed};

/// The directory of archives.
#[derive(Clone, Debug)]
pub struct Imports {
    dir: PathBuf,
}

impl Imports {
    /// Those in `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Imports { dir }
    }

    /// Where the archive of a cache is.
    pub fn path(&self, id: &CacheId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Begins an empty one for the cache `id`.
    pub fn begin(&self, id: CacheId) -> io::Result<Spool> {
        let dir = Dir::open(&self.dir)?;
        if let Some(file) = unnamed::create(&dir, 0o600)? {
            return Ok(Spool { dir, id, file, named: false });
        }
        let file = dir.create_file(id.to_string().as_bytes(), 0o600)?;
        Ok(Spool { dir, id, file, named: true })
    }

    /// Caches of which an archive is there. What is not named like one is left alone.
    pub fn list(&self) -> io::Result<Vec<CacheId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<CacheId>().ok()));
        }
        Ok(found)
    }

    /// Removes the archive of a cache, if it is there.
    pub fn remove(&self, id: &CacheId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// An archive on its way in. Dropped before it is [kept](Spool::keep) it leaves nothing.
#[derive(Debug)]
pub struct Spool {
    dir: Dir,
    id: CacheId,
    file: File,
    /// Whether there is a file of that name, which goes with this.
    named: bool,
}

impl Spool {
    /// Bytes that the file system has left.
    pub fn free(&self) -> io::Result<u64> {
        space::free(&self.dir)
    }

    /// Adds `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Flushes it and gives it its name, for good.
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
            tracing::warn!(cache = %self.id, %error, "removing an archive that was not sent whole");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_whole_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let imports = Imports::new(dir.path().to_owned());
        fs::write(dir.path().join("other"), "x").unwrap();
        let (one, two, three) = (CacheId::random(), CacheId::random(), CacheId::random());
        let mut whole = imports.begin(one).unwrap();
        let mut given_up = imports.begin(two).unwrap();
        whole.write(b"a").unwrap();
        given_up.write(b"b").unwrap();
        assert_eq!(imports.list().unwrap(), []);
        whole.keep().unwrap();
        drop(given_up);
        // As on a file system where every file has a name.
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
