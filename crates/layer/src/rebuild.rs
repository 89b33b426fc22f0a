//! Rebuilds the tar of a layer from its tar-split file and its tree. This serves to verify the tree, or to
//! apply the same change set on other parents without fetching it again.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::decode::ChunkSource;
use super::path::{self, escape};
use super::stored::{StoredDir, StoredFile};
use super::tar;
use super::tar_split::{Assembler, TarSplitReader};
use larder_sys::advice;

/// Size of one read, bytes.
const CHUNK: usize = 1 << 17;

type Open = Box<dyn FnMut(&[u8]) -> io::Result<TrackedFile> + Send>;

/// A tar that is being rebuilt.
pub struct Rebuilt {
    assembler: Assembler<BufReader<File>, Open, TrackedFile>,
    read: FilesRead,
    returned: Offset,
}

/// The files from which the tar was rebuilt so far: the offset of their content in the tar, and their path.
#[derive(Clone, Debug, Default)]
pub struct FilesRead(Arc<Mutex<HashMap<u64, Vec<u8>>>>);

impl FilesRead {
    /// Returns the path of the file whose content starts at `offset`, or `None` if there is none.
    pub fn at(&self, offset: u64) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&offset).cloned()
    }
}

/// An offset in a tar; clones share it. Used as a [`tar::Record`], it follows the reader: after a member
/// header has been read, it is the offset of the member's content.
#[derive(Clone, Debug, Default)]
pub struct Offset(Arc<AtomicU64>);

impl Offset {
    /// Returns the offset in bytes from the start of the tar.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, len: usize) {
        self.0.fetch_add(len as u64, Ordering::Relaxed);
    }
}

impl tar::Record for Offset {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.add(bytes.len());
        Ok(())
    }

    fn header(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8]) {
        self.add(bytes.len());
    }

    fn file(&mut self, _: &[u8], _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl Rebuilt {
    /// Rebuilds from the open tar-split file and the layer's tree. Both are untrusted.
    pub fn new(split: File, diff: StoredDir) -> Self {
        let read = FilesRead::default();
        let returned = Offset::default();
        let (tracked, offset) = (read.clone(), returned.clone());
        let mut files = Files { top: diff, last: None };
        let open: Open = Box::new(move |name| {
            let file = files
                .open(name)
                .map_err(|e| io::Error::new(e.kind(), format!("opening {:?}: {e}", escape(name))))?;
            if let StoredFile::File(file) = &file {
                advice::will_read(file);
            }
            Ok(TrackedFile { file, record: Some((name.to_vec(), tracked.clone(), offset.clone())) })
        });
        let records = TarSplitReader::new(BufReader::with_capacity(CHUNK, split));
        Rebuilt { assembler: Assembler::new(records, open), read, returned }
    }

    /// Returns a view of the files read so far, which grows while the tar is read.
    pub fn files_read(&self) -> FilesRead {
        self.read.clone()
    }
}

impl std::fmt::Debug for Rebuilt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rebuilt").finish_non_exhaustive()
    }
}

impl ChunkSource for Rebuilt {
    fn next(&mut self) -> io::Result<Option<bytes::Bytes>> {
        let mut chunk = vec![0; CHUNK];
        let len = self.assembler.read(&mut chunk)?;
        self.returned.add(len);
        chunk.truncate(len);
        Ok((len > 0).then(|| chunk.into()))
    }
}

/// A file that is recorded at its first read. At that point all tar bytes before it have been returned.
struct TrackedFile {
    file: StoredFile,
    record: Option<(Vec<u8>, FilesRead, Offset)>,
}

impl Read for TrackedFile {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if let Some((name, read, offset)) = self.record.take() {
            read.0.lock().unwrap_or_else(PoisonError::into_inner).insert(offset.get(), name);
        }
        self.file.read(to)
    }
}

/// The regular files of a layer.
struct Files {
    top: StoredDir,
    /// The most recently used directory and its path. The next file is usually in the same directory.
    last: Option<(Vec<u8>, StoredDir)>,
}

impl Files {
    /// Opens a file by its path in the layer without following symbolic links.
    fn open(&mut self, name: &[u8]) -> io::Result<StoredFile> {
        let clean = path::clean(name).map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, fault))?;
        let (parent, name) = path::split(&clean);
        if let Some((path, dir)) = &self.last
            && path == parent
        {
            return dir.open_file(name);
        }
        let mut dir = self.top.try_clone()?;
        for component in path::components(parent) {
            dir = dir.open_dir(component)?;
        }
        let file = dir.open_file(name);
        self.last = Some((parent.to_vec(), dir));
        file
    }
}
