use std::collections::VecDeque;
use std::io::{self, BufRead, Read};

use super::{Error, Record, TarSplitReader, crc};

/// Maximum number of pieces prepared ahead: a header and a file for each of about 30 files.
const PIECES_AHEAD: usize = 64;
/// Maximum number of raw bytes in these pieces, not counting the last piece.
const BYTES_AHEAD: usize = 1 << 20;

/// Rebuilds the tar: a [`Read`] over the bytes of the layer's tar. Errors are [`io::Error`] values that wrap
/// an [`Error`].
///
/// Files are opened some time before they are read, so that the `open` callback can start readahead. Size and
/// checksum of each file are checked before the byte after it is returned.
pub struct Assembler<R, F, T> {
    records: TarSplitReader<R>,
    open: F,
    ahead: VecDeque<Result<Piece<T>, Error>>,
    bytes_ahead: usize,
    /// `true` if nothing follows the prepared pieces: the end, or an error.
    ended: bool,
    segment: Vec<u8>,
    taken: usize,
    file: Option<File<T>>,
}

/// A record with everything needed to return its bytes.
#[expect(
    clippy::large_enum_variant,
    reason = "at most 64 exist; a box would cost one more allocation per file"
)]
enum Piece<T> {
    Segment(Vec<u8>),
    File(File<T>),
}

/// A file whose content is being returned.
pub(super) struct File<T> {
    content: T,
    name: Vec<u8>,
    left: u64,
    want: u64,
    crc: crc_fast::Digest,
}

impl<T: Read> File<T> {
    pub(super) fn new(content: T, name: Vec<u8>, size: u64, want: u64) -> Self {
        File { content, name, left: size, want, crc: crc() }
    }

    /// Continues reading; returns 0 once the file has ended with the right size and checksum.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let differs = |reason: &str| Error::File { name: self.name.clone(), reason: reason.to_owned() };
        let read = loop {
            match self.content.read(out) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(differs(&format!("it cannot be read: {error}"))),
                Ok(read) => break read,
            }
        };
        match read {
            0 if self.left > 0 => Err(differs(&format!("it is {} bytes too short", self.left))),
            0 if self.crc.finalize() != self.want => Err(differs("its content changed (CRC-64 mismatch)")),
            read if read as u64 > self.left => Err(differs("it is too long")),
            read => {
                self.crc.update(&out[..read]);
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}

impl<R, F, T> std::fmt::Debug for Assembler<R, F, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Assembler").field("records", &self.records).finish_non_exhaustive()
    }
}

impl<R, F, T> Assembler<R, F, T>
where
    R: BufRead,
    F: FnMut(&[u8]) -> io::Result<T>,
    T: Read,
{
    /// Creates an assembler that gets the content of files from `open`, by their names in the tar-split.
    pub fn new(records: TarSplitReader<R>, open: F) -> Self {
        Assembler {
            records,
            open,
            ahead: VecDeque::with_capacity(PIECES_AHEAD),
            bytes_ahead: 0,
            ended: false,
            segment: Vec::new(),
            taken: 0,
            file: None,
        }
    }

    /// Makes the next piece current; returns `false` at the end.
    fn advance(&mut self) -> Result<bool, Error> {
        // Files are opened in batches, so that their readahead runs together.
        if self.ahead.len() <= PIECES_AHEAD / 2 {
            self.look_ahead();
        }
        match self.ahead.pop_front().transpose()? {
            None => return Ok(false),
            Some(Piece::Segment(segment)) => {
                self.bytes_ahead -= segment.len();
                self.segment = segment;
                self.taken = 0;
            }
            Some(Piece::File(file)) => self.file = Some(file),
        }
        Ok(true)
    }

    fn look_ahead(&mut self) {
        while !self.ended && self.ahead.len() < PIECES_AHEAD && self.bytes_ahead < BYTES_AHEAD {
            let Some(piece) = self.next_piece().transpose() else {
                self.ended = true;
                return;
            };
            self.ended = piece.is_err();
            if let Ok(Piece::Segment(segment)) = &piece {
                self.bytes_ahead += segment.len();
            }
            self.ahead.push_back(piece);
        }
    }

    fn next_piece(&mut self) -> Result<Option<Piece<T>>, Error> {
        let position = self.records.position();
        Ok(match self.records.next().transpose()? {
            None => None,
            Some(Record::Segment(segment)) => Some(Piece::Segment(segment)),
            Some(Record::File { name, size, crc }) => {
                let content = (self.open)(&name).map_err(|source| Error::Io { position, source })?;
                Some(Piece::File(File::new(content, name, size, crc)))
            }
        })
    }
}

impl<R, F, T> Read for Assembler<R, F, T>
where
    R: BufRead,
    F: FnMut(&[u8]) -> io::Result<T>,
    T: Read,
{
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(file) = &mut self.file {
                match file.read(out)? {
                    0 => self.file = None,
                    read => return Ok(read),
                }
            }
            let left = &self.segment[self.taken..];
            if !left.is_empty() {
                let read = left.len().min(out.len());
                out[..read].copy_from_slice(&left[..read]);
                self.taken += read;
                return Ok(read);
            }
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}
