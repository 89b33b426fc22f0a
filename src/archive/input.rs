//! The archive as a user gives it: a path, or standard input; a tar perhaps compressed as a whole.
//!
//! Contents are read by offset, so what comes as a stream or has to be inflated is kept aside first, in a file without a
//! name in the directory for temporary files.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::{Context, Error};
use super::members;
use super::store::Store;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::limits::Ratio;
use larder_model::digest::Algorithm;
use larder_sys::{Dir, space, unnamed};

/// What an archive is called that has no path.
const STDIN: &str = "standard input";

/// Bytes read at once.
const CHUNK: usize = 1 << 18;

/// An archive that is open and was not looked into yet: nothing of it was parsed.
#[derive(Debug)]
pub struct Input {
    shown: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Opened when it is read: a descriptor from outside of a sandbox would lead out of it.
    Directory(PathBuf),
    File(File),
    /// A compressed file, and where it is inflated to.
    Compressed(File, Temporary),
}

impl Input {
    /// Opens the archive at `path`; `-` is standard input, which is read to its end.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display().to_string();
        if path == Path::new("-") {
            return Input::kept(&Input::keep()?);
        }
        let metadata = std::fs::metadata(path).context("opening", &shown)?;
        let place = if metadata.is_dir() {
            Place::Directory(path.to_owned())
        } else if metadata.is_file() {
            sniffed(File::open(path).context("opening", &shown)?, &shown)?
        } else {
            // A pipe, say of a shell's <(…).
            let mut file = Temporary::new()?;
            file.fill(&mut File::open(path).context("opening", &shown)?, &shown)?;
            sniffed(file.file, &shown)?
        };
        Ok(Input { shown, place })
    }

    /// Reads standard input to its end into a file without a name, for [`Input::kept`]. Nothing of it is parsed.
    ///
    /// # Errors
    /// Reading and writing fail, or the directory for temporary files has too little room.
    pub fn keep() -> Result<File, Error> {
        let mut file = Temporary::new()?;
        file.fill(&mut io::stdin().lock(), STDIN)?;
        unnamed::read_only(&file.file).context("opening", STDIN)
    }

    /// Opens the archive that [`Input::keep`] kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn kept(file: &File) -> Result<Self, Error> {
        let file = file.try_clone().context("opening", STDIN)?;
        Ok(Input { place: sniffed(file, STDIN)?, shown: STDIN.to_owned() })
    }

    /// Opens the tar that a daemon received and keeps at `path`. It is taken as it is, never inflated to a file: what came
    /// compressed as a whole was refused.
    pub fn received(path: &Path) -> Result<Self, Error> {
        let shown = "the archive".to_owned();
        let file = File::open(path).context("opening", &shown)?;
        Ok(Input { shown, place: Place::File(file) })
    }

    /// Looks at what it has.
    pub(super) fn into_store(self) -> Result<(String, Store), Error> {
        let file = match self.place {
            Place::Directory(path) => {
                let dir = Dir::open(&path).context("opening", &self.shown)?;
                return Ok((self.shown, Store::Layout(dir)));
            }
            Place::File(file) => file,
            Place::Compressed(from, mut to) => {
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

/// A tar begins with the name of its first member, so that magic bytes of gzip and zstd are none.
fn sniffed(file: File, shown: &str) -> Result<Place, Error> {
    let mut magic = [0; 10];
    let read = file.read_at(&mut magic, 0).context("reading", shown)?;
    let unknown = |program| Err(Error::Compression { path: shown.to_owned(), program });
    match magic[..read] {
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Place::Compressed(file, Temporary::new()?)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => unknown("xz"),
        // The digits of pi begin each block.
        [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59] => unknown("bzip2"),
        _ => Ok(Place::File(file)),
    }
}

/// A file without a name, for a stream of which nobody knows the length.
#[derive(Debug)]
struct Temporary {
    file: File,
    dir: String,
    /// Most bytes: others get half of what is free.
    limit: u64,
}

impl Temporary {
    fn new() -> Result<Self, Error> {
        let dir = std::env::temp_dir();
        let shown = dir.display().to_string();
        let file = unnamed::temporary().context("creating a temporary file in", &shown)?;
        let free = Dir::open(&dir).and_then(|dir| space::free(&dir));
        let limit = free.context("asking for free space in", &shown)? / 2;
        Ok(Temporary { file, dir: shown, limit })
    }

    /// Copies `from` to its end.
    fn fill(&mut self, from: &mut impl Read, shown: &str) -> Result<(), Error> {
        let mut buffer = vec![0; CHUNK];
        let mut copied = 0;
        loop {
            let read = match from.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // A decoder's error knows more than its kind does.
                Err(e) => match e.downcast::<larder_layer::decode::Error>() {
                    Ok(source) => return Err(Error::Decode { path: shown.to_owned(), source }),
                    Err(e) => return Err(e).context("reading", shown),
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

/// A file from its start on.
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
