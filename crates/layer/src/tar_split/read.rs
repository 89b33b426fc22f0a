use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;

use super::MAX_LINE;
use larder_model::class::Class;

/// A tar-split cannot be read, or does not belong to the files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file with it, or a file that it names, cannot be read.
    #[error("reading the tar-split, entry {position}: {source}")]
    Io {
        /// Number of the entry, from 0.
        position: u64,
        /// What the system says.
        source: io::Error,
    },
    /// It breaks the form.
    #[error("the tar-split is corrupt at entry {position}: {reason}")]
    Corrupt {
        /// Number of the entry, from 0.
        position: u64,
        /// What is wrong.
        reason: String,
    },
    /// A file is not the one that the tar had.
    #[error("file {} is not as it was in the layer: {reason}", shown(.name))]
    File {
        /// Its name in the tar-split.
        name: Vec<u8>,
        /// How it differs.
        reason: String,
    },
}

/// A name as errors show it: escaped and cut.
fn shown(name: &[u8]) -> String {
    name[..name.len().min(256)].escape_ascii().to_string()
}

impl Error {
    /// The class of the failure.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
                    Class::Corrupt
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Class::NoSpace,
                io::ErrorKind::NotFound => Class::Corrupt,
                _ => Class::Internal,
            },
            Error::Corrupt { .. } | Error::File { .. } => Class::Corrupt,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::Io { source, .. } => source.kind(),
            Error::Corrupt { .. } | Error::File { .. } => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, error)
    }
}

/// One piece of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Raw bytes.
    Segment(Vec<u8>),
    /// The content of a file, not empty.
    File {
        /// Path in the layer's tree.
        name: Vec<u8>,
        /// Size, bytes.
        size: u64,
        /// CRC-64/GO-ISO.
        crc: u64,
    },
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(borrow, default)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    name_raw: Option<Cow<'a, str>>,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    payload: Option<Cow<'a, str>>,
    position: u64,
}

/// Reads a tar-split record by record. Entries of files without content are left out.
pub struct TarSplitReader<R> {
    input: BufReader<MultiGzDecoder<R>>,
    line: Vec<u8>,
    position: u64,
}

impl<R> std::fmt::Debug for TarSplitReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarSplitReader").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<R: BufRead> TarSplitReader<R> {
    /// A reader of the gzip stream `input`.
    pub fn new(input: R) -> Self {
        TarSplitReader { input: BufReader::new(MultiGzDecoder::new(input)), line: Vec::new(), position: 0 }
    }

    fn record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if !self.read_line()? {
                return Ok(None);
            }
            let position = self.position;
            let record = parse(&self.line, position).map_err(|reason| Error::Corrupt { position, reason })?;
            self.position += 1;
            if record.is_some() {
                return Ok(record);
            }
        }
    }

    /// Number of the next entry.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    fn read_line(&mut self) -> Result<bool, Error> {
        self.line.clear();
        let limited = &mut (&mut self.input).take(MAX_LINE as u64);
        let read = limited
            .read_until(b'\n', &mut self.line)
            .map_err(|source| Error::Io { position: self.position, source })?;
        if read > 0 && self.line.last() != Some(&b'\n') {
            return Err(Error::Corrupt {
                position: self.position,
                reason: if read == MAX_LINE {
                    format!("a line of more than {MAX_LINE} bytes")
                } else {
                    "its last line is cut off".into()
                },
            });
        }
        Ok(read > 0)
    }
}

impl<R: BufRead> Iterator for TarSplitReader<R> {
    type Item = Result<Record, Error>;

    /// The next record; an error is the last item that means anything.
    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}

/// Reads one line; `None` for a file without content.
fn parse(line: &[u8], position: u64) -> Result<Option<Record>, String> {
    let entry: Entry<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if entry.position != position {
        return Err(format!("it says that it is entry {}", entry.position));
    }
    let decode = |text: Option<Cow<'_, str>>| {
        BASE64.decode(text.unwrap_or_default().as_bytes()).map_err(|error| format!("not base64: {error}"))
    };
    match entry.kind {
        1 if entry.size == 0 => Ok(None),
        1 => {
            let crc: [u8; 8] = decode(entry.payload)?
                .try_into()
                .map_err(|_| "the checksum of a file has not 8 bytes".to_owned())?;
            let name = match (entry.name, entry.name_raw) {
                (Some(name), None) => name.into_owned().into_bytes(),
                (None, raw @ Some(_)) => decode(raw)?,
                _ => return Err("a file needs either name or name_raw".into()),
            };
            Ok(Some(Record::File { name, size: entry.size, crc: u64::from_be_bytes(crc) }))
        }
        2 => Ok(Some(Record::Segment(decode(entry.payload)?))),
        other => Err(format!("unknown entry type {other}")),
    }
}
