//! Access to the files of an archive by path.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;

use super::error::Error;
use super::extent::Extent;
use super::members::Members;
use larder_layer::decode::ChunkSource;
use larder_layer::path;
use larder_model::io_error::Context as _;
use larder_sys::Dir;

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// Storage of an archive: a directory or a tar.
#[derive(Debug)]
pub(super) enum Store {
    Layout(Dir),
    Tar { file: Arc<File>, members: Members },
}

/// A file of an archive, read from start to end.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Path for messages.
    path: String,
    file: Arc<File>,
    extent: Extent,
    read: u64,
}

impl Store {
    /// Reports whether there is a file at `path`.
    pub(super) fn has(&self, path: &str) -> Result<bool, Error> {
        Ok(self.open(path)?.is_some())
    }

    /// Opens the file at `path`; `None` if there is none. In a directory, links are not followed and only
    /// regular files are opened.
    pub(super) fn open(&self, path: &str) -> Result<Option<Blob>, Error> {
        let (file, extent) = match self {
            Store::Tar { file, members } => match members.get(path) {
                Some(extent) => (Arc::clone(file), extent),
                None => return Ok(None),
            },
            Store::Layout(root) => {
                let (parent, name) = path::split(path.as_bytes());
                match root.open_beneath(parent).and_then(|dir| dir.open_file(name)) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(e) if is_not_a_file(&e) => {
                        return Err(malformed(path, "not a regular file; links are not followed".into()));
                    }
                    opened => {
                        let file = opened.context("opening", path)?;
                        let size = file.metadata().context("examining", path)?.len();
                        (Arc::new(file), Extent::whole(0, size))
                    }
                }
            }
        };
        Ok(Some(Blob { path: path.to_owned(), file, extent, read: 0 }))
    }

    /// Reads the file at `path`, which must exist and have at most `limit` bytes.
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let blob = self.open(path)?;
        blob.ok_or_else(|| malformed(path, "missing".into()))?.read(limit)
    }
}

impl Blob {
    /// Returns its size in bytes.
    pub fn size(&self) -> u64 {
        self.extent.size
    }

    /// Reads the first bytes, at most `N`.
    pub(super) fn start<const N: usize>(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; usize::try_from(self.extent.size).unwrap_or(N).min(N)];
        self.extent.read_at(&self.file, &mut bytes, 0).context("reading", &self.path)?;
        Ok(bytes)
    }

    /// Reads the whole content, which must have at most `limit` bytes.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>, Error> {
        let size = usize::try_from(self.extent.size).ok().filter(|_| self.extent.size <= limit);
        let too_large = || format!("it has {} bytes, the limit is {limit}", self.extent.size);
        let mut bytes = vec![0; size.ok_or_else(|| malformed(&self.path, too_large()))?];
        self.extent.read_at(&self.file, &mut bytes, 0).context("reading", &self.path)?;
        Ok(bytes)
    }
}

/// Reports whether [`Dir`] found a link, a directory or a device instead of a file or a directory.
fn is_not_a_file(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ELOOP | Errno::ENOTDIR | Errno::EISDIR | Errno::EINVAL))
}

fn malformed(file: &str, reason: String) -> Error {
    Error::Malformed { file: file.to_owned(), reason }
}

impl ChunkSource for Blob {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let left = self.extent.size - self.read;
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        self.extent.read_at(&self.file, &mut chunk, self.read)?;
        self.read += chunk.len() as u64;
        Ok((!chunk.is_empty()).then(|| chunk.into()))
    }
}
