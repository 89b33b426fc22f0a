//! One tar, to a file or to a stream.

use std::fs::File;
use std::io::{self, Seek as _, Write};
use std::os::unix::fs::FileExt as _;

use super::{Fill, Place, Target};
use crate::export::Error;
use crate::export::error::Context;
use crate::export::tar::{BLOCK, END, Kind, header, padding};
use larder_sys::unnamed;

/// A tar that is being written.
pub(in crate::export) struct Tar<'a> {
    sink: Sink<'a>,
    /// Bytes so far.
    at: u64,
}

enum Sink<'a> {
    /// Headers can be written after the content.
    File(File),
    /// What has no known size is kept in a file without a name first.
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
        self.sink.writer().write_all(bytes).context("writing", "the archive")
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        self.put(&[0; BLOCK][..padding(size)])
    }

    /// The content follows a header that was right before.
    fn known(&mut self, known: &Place, fill: &mut Fill<'_>) -> Result<(), Error> {
        self.put(&header(&known.path, Kind::File, known.size))?;
        let place = fill(self.sink.writer())?;
        self.at += place.size;
        if place != *known {
            let source = io::Error::other(format!("{} has {} bytes", place.path, place.size));
            return Err(source).context("writing", &known.path);
        }
        self.pad(place.size)
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

    fn stream(&mut self, known: Option<&Place>, fill: &mut Fill<'_>) -> Result<(), Error> {
        if let Some(known) = known {
            return self.known(known, fill);
        }
        match &mut self.sink {
            Sink::File(file) => {
                let start = self.at;
                file.write_all(&[0; BLOCK]).context("writing", "the archive")?;
                let place = fill(file)?;
                let header = header(&place.path, Kind::File, place.size);
                file.write_all_at(&header, start).context("writing", "the archive")?;
                self.at += BLOCK as u64 + place.size;
                self.pad(place.size)
            }
            Sink::Stream(stream) => {
                let mut kept = unnamed::temporary().context("creating", "a temporary file")?;
                let place = fill(&mut kept)?;
                kept.rewind().context("reading", "a layer kept aside")?;
                let header = header(&place.path, Kind::File, place.size);
                let written = stream.write_all(&header).and_then(|()| io::copy(&mut kept, stream));
                written.context("writing", "the archive")?;
                self.at += BLOCK as u64 + place.size;
                self.pad(place.size)
            }
        }
    }

    fn finish(&mut self) -> Result<u64, Error> {
        self.put(&END)?;
        self.sink.writer().flush().context("writing", "the archive")?;
        Ok(self.at)
    }
}
