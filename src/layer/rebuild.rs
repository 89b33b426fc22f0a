//! The tar of a layer again, from its tar-split file and its tree: to prove the tree, or to lay the same change set on other
//! parents without fetching it a second time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use super::decode::ChunkSource;
use super::path::{self, escape};
use super::tar_split::{Assembler, FileRecord};
use crate::sys::Dir;

/// How much is read at once, bytes.
const CHUNK: usize = 1 << 17;

type Open = Box<dyn FnMut(&FileRecord) -> io::Result<File>>;

/// A tar that is being rebuilt.
pub struct Rebuilt {
    assembler: Assembler<BufReader<File>, Open>,
    read: FilesRead,
}

/// Which files the tar was rebuilt from so far: the offset of their content in the tar, and their path.
#[derive(Clone, Debug, Default)]
pub struct FilesRead(Rc<RefCell<HashMap<u64, Vec<u8>>>>);

impl FilesRead {
    /// The file whose content lies at `offset`.
    pub fn at(&self, offset: u64) -> Option<Vec<u8>> {
        self.0.borrow().get(&offset).cloned()
    }
}

impl Rebuilt {
    /// Rebuilds from the open tar-split file and the layer's tree. Neither is trusted.
    pub fn new(split: File, diff: Dir) -> Self {
        let read = FilesRead::default();
        let noted = read.clone();
        let open: Open = Box::new(move |record| {
            let file = open_named(&diff, &record.name)
                .map_err(|e| io::Error::new(e.kind(), format!("opening {:?}: {e}", escape(&record.name))))?;
            noted.0.borrow_mut().insert(record.offset, record.name.clone());
            Ok(file)
        });
        Rebuilt { assembler: Assembler::new(BufReader::with_capacity(CHUNK, split), open), read }
    }

    /// A view of the files read, which grows while the tar is read.
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
        chunk.truncate(len);
        Ok((len > 0).then(|| chunk.into()))
    }
}

/// Opens a regular file below `diff`, following no link.
fn open_named(diff: &Dir, name: &[u8]) -> io::Result<File> {
    let clean = path::clean(name).map_err(|fault| io::Error::new(io::ErrorKind::InvalidInput, fault))?;
    let (parent, name) = path::split(&clean);
    let mut dir = diff.try_clone()?;
    for component in path::components(parent) {
        dir = dir.open_dir(component)?;
    }
    dir.open_file(name)
}
