//! The archive that the user gives: a path or standard input. A tar can be compressed as a whole.
//!
//! Contents are read by offset. So a stream, or a compressed tar, is first copied to an unnamed file in the
//! temporary directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::Error;
use super::members;
use super::store::Store;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::limits::Ratio;
use larder_model::digest::Algorithm;
use larder_model::io_error::{Context as _, IoError};
use larder_model::seal::Compression;
use larder_sys::{Dir, space, unnamed};

/// Name of standard input in messages.
const STDIN: &str = "standard input";

/// Bytes read at a time.
const CHUNK: usize = 1 << 18;

/// An opened archive of which nothing was parsed yet.
#[derive(Debug)]
pub struct Input {
    shown: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Opened when it is read: a descriptor of a directory from outside would be a way out of the sandbox.
    Directory(PathBuf),
    File(File),
    /// A compressed file, and the temporary file that it is decompressed to.
    Compressed(File, Temporary),
}

impl Input {
    /// Opens the archive at `path`; `-` is standard input, which is read to its end.
    ///
    /// # Errors
    /// It cannot be opened or copied, or its compression is not supported.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        if path == Path::new("-") {
            return Input::kept(&Input::keep()?);
        }
        let metadata = std::fs::metadata(path).context("opening", &shown)?;
        let content = if metadata.is_dir() {
            Content::Directory(path.to_owned())
        } else if metadata.is_file() {
            detect_compression(File::open(path).context("opening", &shown)?, &shown)?
        } else {
            // A pipe, such as the shell's <(…).
            let mut file = Temporary::new()?;
            file.fill(&mut File::open(path).context("opening", &shown)?, &shown)?;
            detect_compression(file.file, &shown)?
        };
        Ok(Input { shown, content })
    }

    /// Copies standard input to an unnamed file, for [`Input::kept`]. Nothing is parsed.
    ///
    /// # Errors
    /// Reading or writing fails, or the temporary directory has too little space.
    pub fn keep() -> Result<File, Error> {
        let mut file = Temporary::new()?;
        file.fill(&mut io::stdin().lock(), STDIN)?;
        Ok(unnamed::read_only(&file.file).context("opening", STDIN)?)
    }

    /// Opens the copy that [`Input::keep`] made.
    ///
    /// # Errors
    /// It cannot be read, or its compression is not supported.
    pub fn kept(file: &File) -> Result<Self, Error> {
        let file = file.try_clone().context("opening", STDIN)?;
        Ok(Input { content: detect_compression(file, STDIN)?, shown: STDIN.to_owned() })
    }

    /// Opens the tar that a daemon received and stored at `path`. It is never decompressed to a file: the
    /// daemon refuses compressed tars.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn received(path: &Path) -> Result<Self, Error> {
        let shown = "the archive".to_owned();
        let file = File::open(path).context("opening", &shown)?;
        Ok(Input { shown, content: Content::File(file) })
    }

    /// Indexes the archive. Returns its name for messages, and its files.
    pub(super) fn into_store(self) -> Result<(String, Store), Error> {
        let file = match self.content {
            Content::Directory(path) => {
                let dir = Dir::open(&path).context("opening", &self.shown)?;
                return Ok((self.shown, Store::Layout(dir)));
            }
            Content::File(file) => file,
            Content::Compressed(from, mut to) => {
                let mut decoder =
                    Decoder::new(Chunks { file: from, at: 0 }, Algorithm::Sha256, Ratio::default());
                to.fill(&mut decoder, &self.shown)?;
                let decoded = decoder.finish();
                decoded.map_err(|source| Error::Decode { path: self.shown.clone(), source })?;
                to.file
            }
        };
        let file = Arc::new(file);
        let members = members::index(&file, &self.shown)?;
        Ok((self.shown, Store::Tar { file, members }))
    }
}

/// Detects compression by magic bytes.
fn detect_compression(file: File, shown: &str) -> Result<Content, Error> {
    let mut magic = [0; 10];
    let read = file.read_at(&mut magic, 0).context("reading", shown)?;
    let unknown = |program| Err(Error::Compression { path: shown.to_owned(), program });
    if Compression::detect(&magic[..read]) != Compression::None {
        return Ok(Content::Compressed(file, Temporary::new()?));
    }
    match magic[..read] {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unknown("xz"),
        // The digits of pi start each block.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59] => unknown("bzip2"),
        _ => Ok(Content::File(file)),
    }
}

/// An unnamed file, for a stream of unknown length.
#[derive(Debug)]
struct Temporary {
    file: File,
    dir: String,
    /// Maximum size, bytes: half of the free space, so that other programs have the rest.
    limit: u64,
}

impl Temporary {
    fn new() -> Result<Self, Error> {
        let dir = std::env::temp_dir();
        let shown = dir.display().to_string();
        let file = unnamed::temporary().context("creating a temporary file in", &shown)?;
        let free = Dir::open(&dir).and_then(|dir| space::free(&dir));
        let limit = free.context("reading the free space in", &shown)? / 2;
        Ok(Temporary { file, dir: shown, limit })
    }

    /// Copies `from` to its end into the file.
    fn fill(&mut self, from: &mut impl Read, shown: &str) -> Result<(), Error> {
        let mut buffer = vec![0; CHUNK];
        let mut copied = 0;
        loop {
            let read = match from.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // The error of a decoder has more details than its kind.
                Err(e) => match e.downcast::<larder_layer::decode::Error>() {
                    Ok(source) => return Err(Error::Decode { path: shown.to_owned(), source }),
                    Err(e) => return Err(IoError::new("reading", shown, e).into()),
                },
                Ok(0) => return Ok(()),
                Ok(read) => read,
            };
            copied += read as u64;
            if copied > self.limit {
                let (path, dir) = (shown.to_owned(), self.dir.clone());
                return Err(Error::Spool { path, dir, limit: self.limit });
            }
            self.file.write_all(&buffer[..read]).context("writing to a temporary file in", &self.dir)?;
        }
    }
}

/// Reads a file from its start, in chunks.
struct Chunks {
    file: File,
    at: u64,
}

impl ChunkSource for Chunks {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut chunk = vec![0; CHUNK];
        let read = self.file.read_at(&mut chunk, self.at)?;
        self.at += read as u64;
        chunk.truncate(read);
        Ok((read > 0).then(|| chunk.into()))
    }
}
