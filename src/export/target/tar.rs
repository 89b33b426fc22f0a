//! Output as one tar, to a file or a stream.

use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::os::unix::fs::FileExt as _;

use super::{FileInfo, Fill, Target};
use crate::export::Error;
use crate::export::tar::{BLOCK, END, Kind, header, padding};
use larder_model::io_error::{Context as _, IoError};
use larder_sys::unnamed;

/// A tar that is being written.
pub(in crate::export) struct Tar<'a> {
    sink: Sink<'a>,
    /// Bytes written so far.
    at: u64,
}

enum Sink<'a> {
    /// A file: a header can be written after its content.
    File(File),
    /// A stream: content of unknown size is first written to an unnamed temporary file.
    Stream(Box<dyn Write + Send + 'a>),
}

impl std::fmt::Debug for Tar<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tar").field("at", &self.at).finish_non_exhaustive()
    }
}

impl<'a> Tar<'a> {
    pub(in crate::export) fn of_file(file: File) -> Self {
        Tar { sink: Sink::File(file), at: 0 }
    }

    pub(in crate::export) fn of_stream(stream: Box<dyn Write + Send + 'a>) -> Self {
        Tar { sink: Sink::Stream(stream), at: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.at += bytes.len() as u64;
        Ok(self.sink.writer().write_all(bytes).context("writing", "the archive")?)
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        self.put(&[0; BLOCK][..padding(size)])
    }

    /// Writes a file whose header is known before its content.
    fn known(&mut self, known: &FileInfo, fill: &mut Fill<'_>) -> Result<(), Error> {
        self.put(&header(&known.path, Kind::File, known.size))?;
        let info = fill(self.sink.writer())?;
        self.at += info.size;
        if info != *known {
            let source = io::Error::other(format!("{} has {} bytes", info.path, info.size));
            return Err(IoError::new("writing", &known.path, source).into());
        }
        self.pad(info.size)
    }
}

impl Sink<'_> {
    fn writer(&mut self) -> &mut (dyn Write + Send) {
        match self {
            Sink::File(file) => file,
            Sink::Stream(stream) => &mut **stream,
        }
    }
}

impl Target for Tar<'_> {
    fn directory(&mut self, path: &str) -> Result<(), Error> {
        self.put(&header(&format!("{path}/"), Kind::Directory, 0))
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let size = bytes.len() as u64;
        self.put(&header(path, Kind::File, size))?;
        self.put(bytes)?;
        self.pad(size)
    }

    fn stream(&mut self, known: Option<&FileInfo>, fill: &mut Fill<'_>) -> Result<(), Error> {
        if let Some(known) = known {
            return self.known(known, fill);
        }
        match &mut self.sink {
            Sink::File(file) => {
                let start = self.at;
                file.write_all(&[0; BLOCK]).context("writing", "the archive")?;
                let info = fill(file)?;
                let header = header(&info.path, Kind::File, info.size);
                file.write_all_at(&header, start).context("writing", "the archive")?;
                self.at += BLOCK as u64 + info.size;
                self.pad(info.size)
            }
            Sink::Stream(stream) => {
                let mut kept = unnamed::temporary().context("creating", "a temporary file")?;
                let info = fill(&mut kept)?;
                kept.rewind().context("reading", "a temporary layer file")?;
                let header = header(&info.path, Kind::File, info.size);
                let written = stream.write_all(&header).and_then(|()| io::copy(&mut kept, stream));
                written.context("writing", "the archive")?;
                self.at += BLOCK as u64 + info.size;
                self.pad(info.size)
            }
        }
    }

    fn finish(&mut self) -> Result<u64, Error> {
        self.put(&END)?;
        self.sink.writer().flush().context("writing", "the archive")?;
        Ok(self.at)
    }
}
