use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::{MAX_SEGMENT, crc};
use crate::tar;

/// Minimum size of a batch of lines for compression, bytes. Compressing each line on its own costs more in
/// calls than in compression.
const BATCH: usize = 32 << 10;

/// Writes a tar-split into `W` while the tar is read.
pub struct TarSplit<W: Write> {
    out: GzEncoder<W>,
    segment: Vec<u8>,
    /// Complete lines that are not compressed yet.
    lines: Vec<u8>,
    position: u64,
    crc: crc_fast::Digest,
}

impl<W: Write> std::fmt::Debug for TarSplit<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarSplit").field("position", &self.position).finish_non_exhaustive()
    }
}

impl<W: Write> TarSplit<W> {
    /// Creates an empty tar-split. Writes to `out` come in pieces of about 32 KiB.
    pub fn new(out: W) -> Self {
        TarSplit {
            out: GzEncoder::new(out, Compression::fast()),
            segment: Vec::with_capacity(MAX_SEGMENT),
            lines: Vec::with_capacity(2 * BATCH),
            position: 0,
            crc: crc(),
        }
    }

    /// Writes the remaining data and the end of the gzip stream.
    ///
    /// # Errors
    /// Errors of the underlying writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush_segment()?;
        self.out.write_all(&self.lines)?;
        self.out.finish()
    }

    /// Records a file whose checksum is already known.
    pub(super) fn file_with_crc(&mut self, name: &[u8], size: u64, crc: u64) -> io::Result<()> {
        self.flush_segment()?;
        self.lines.extend_from_slice(b"{\"type\":1,");
        match std::str::from_utf8(name) {
            Ok(name) => {
                self.lines.extend_from_slice(b"\"name\":");
                write_string(&mut self.lines, name);
            }
            Err(_) => {
                self.lines.extend_from_slice(b"\"name_raw\":\"");
                write_base64(&mut self.lines, name);
                self.lines.push(b'"');
            }
        }
        write!(self.lines, ",\"size\":{size}")?;
        self.end_line(&crc.to_be_bytes())
    }

    fn flush_segment(&mut self) -> io::Result<()> {
        if self.segment.is_empty() {
            return Ok(());
        }
        self.lines.extend_from_slice(b"{\"type\":2");
        let mut segment = std::mem::take(&mut self.segment);
        let written = self.end_line(&segment);
        segment.clear();
        self.segment = segment;
        written
    }

    fn end_line(&mut self, payload: &[u8]) -> io::Result<()> {
        self.lines.extend_from_slice(b",\"payload\":\"");
        write_base64(&mut self.lines, payload);
        writeln!(self.lines, "\",\"position\":{}}}", self.position)?;
        self.position += 1;
        if self.lines.len() >= BATCH {
            self.out.write_all(&self.lines)?;
            self.lines.clear();
        }
        Ok(())
    }
}

impl<W: Write> tar::Record for TarSplit<W> {
    fn raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = MAX_SEGMENT - self.segment.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.segment.extend_from_slice(now);
            bytes = later;
            if self.segment.len() == MAX_SEGMENT {
                self.flush_segment()?;
            }
        }
        Ok(())
    }

    fn header(&mut self) -> io::Result<()> {
        self.flush_segment()
    }

    fn payload(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    fn file(&mut self, name: &[u8], size: u64) -> io::Result<()> {
        // A file without content has nothing to fetch, and readers reject duplicate names.
        if size == 0 {
            return Ok(());
        }
        let crc = self.crc.finalize_reset();
        self.file_with_crc(name, size, crc)
    }
}

/// Appends a JSON string (RFC 8259, section 7).
fn write_string(line: &mut Vec<u8>, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    line.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => {
                let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
                line.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            _ => line.push(byte),
        }
    }
    line.push(b'"');
}

fn write_base64(line: &mut Vec<u8>, bytes: &[u8]) {
    let start = line.len();
    line.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The slice has exactly the length that padded base64 needs.
    let written = BASE64.encode_slice(bytes, &mut line[start..]).unwrap_or(0);
    line.truncate(start + written);
}
