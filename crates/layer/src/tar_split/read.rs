use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::bufread::MultiGzDecoder;
use serde::Deserialize;

use super::MAX_LINE;
use larder_model::class::Class;
use larder_model::io_error::{FileRole, class};

/// The reason why a tar-split cannot be read or does not match the files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tar-split file, or a file that it lists, cannot be read.
    #[error("reading the tar-split, entry {position}: {source}")]
    Io {
        /// Index of the entry, from 0.
        position: u64,
        /// Error reported by the system.
        r#source: io::Error,
    },
    /// The tar-split violates its format.
    #[error("the tar-split is corrupt at entry {position}: {reason}")]
    Corrupt {
        /// Index of the entry, from 0.
        position: u64,
        /// The violation found.
        reason: String,
    },
    /// A file differs from the one in the tar.
    #[error("file {} differs from the layer: {reason}", shown(.name))]
    File {
        /// Name of the file in the tar-split.
        name: Vec<u8>,
        /// The difference found.
        reason: String,
    },
}

/// Formats a name for an error message: escaped and truncated.
fn shown(name: &[u8]) -> String {
    name[..name.len().min(256)].escape_ascii().to_string()
}

impl Error {
    /// Returns the error class of the failure.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { source, .. } => class(source, FileRole::Sealed),
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
    /// Raw bytes of the tar.
    Segment(Vec<u8>),
    /// Reference to the content of a file, which is not empty.
    File {
        /// Path of the file in the layer's tree.
        name: Vec<u8>,
        /// Size of the file, bytes.
        size: u64,
        /// CRC-64/GO-ISO of the content.
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

/// Reads a tar-split record by record. Skips entries of files without content.
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
    /// Creates a reader of the gzip stream `input`.
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

    /// Returns the index of the next entry.
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
                    "its last line is truncated".into()
                },
            });
        }
        Ok(read > 0)
    }
}

impl<R: BufRead> Iterator for TarSplitReader<R> {
    type Item = Result<Record, Error>;

    /// Returns the next record. Items after an error are meaningless.
    fn next(&mut self) -> Option<Self::Item> {
        self.record().transpose()
    }
}

/// Parses one line; `None` for a file without content.
fn parse(line: &[u8], position: u64) -> Result<Option<Record>, String> {
    let entry: Entry<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if entry.position != position {
        return Err(format!("its position field is {}", entry.position));
    }
    let decode = |text: Option<Cow<'_, str>>| {
        BASE64.decode(text.unwrap_or_default().as_bytes()).map_err(|error| format!("not base64: {error}"))
    };
    match entry.kind {
        1 if entry.size == 0 => Ok(None),
        1 => {
            let crc: [u8; 8] = decode(entry.payload)?
                .try_into()
                .map_err(|_| "the checksum of a file is not 8 bytes long".to_owned())?;
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
