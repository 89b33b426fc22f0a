use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::gzip::GzipWriter;
use super::{MAX_SEGMENT, crc};
use crate::tar;

/// Minimum size of a batch of lines for compression, bytes. Compressing each line on its own costs more in
/// calls than in compression.
const BATCH: usize = 32 << 10;

/// Writes a tar-split into `W` while the tar is read.
pub struct TarSplit<W: Write> {
    out: GzipWriter<W>,
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
            out: GzipWriter::new(out),
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
    line.push(b'"');
    // Without a branch per byte, because nearly no name needs an escape.
    if text.bytes().fold(false, |needed, byte| needed | is_escaped(byte)) {
        text.bytes().for_each(|byte| write_escaped(line, byte));
    } else {
        line.extend_from_slice(text.as_bytes());
    }
    line.push(b'"');
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn write_escaped(line: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
        _ if is_escaped(byte) => {
            let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
            line.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
        }
        _ => line.push(byte),
    }
}

/// Appends `bytes` in base64. Most of a header and of padding is zeros, which are not encoded byte by byte.
fn write_base64(line: &mut Vec<u8>, bytes: &[u8]) {
    /// Size of a group of bytes whose base64 has no padding.
    const GROUP: usize = 24;
    /// Length of the base64 of a group.
    const ENCODED: usize = GROUP / 3 * 4;
    let start = line.len();
    // `A` stands for six bits that are zero (RFC 4648, section 4).
    line.resize(start + bytes.len().div_ceil(3) * 4, b'A');
    let out = &mut line[start..];
    let (groups, tail) = bytes.as_chunks::<GROUP>();
    let mut at = 0;
    while let Some(skipped) = groups[at..].iter().position(|group| *group != [0; GROUP]) {
        at += skipped;
        let run = groups[at..].iter().take_while(|group| **group != [0; GROUP]).count();
        encode(groups[at..at + run].as_flattened(), &mut out[at * ENCODED..(at + run) * ENCODED]);
        at += run;
    }
    encode(tail, &mut out[groups.len() * ENCODED..]);
}

/// Encodes `bytes` into `out`, which has exactly the length of their padded base64.
fn encode(bytes: &[u8], out: &mut [u8]) {
    let written = BASE64.encode_slice(bytes, out);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn base64_of_any_zeros(runs in prop::collection::vec((any::<bool>(), 0usize..100), 0..12), line in any::<Vec<u8>>()) {
            let bytes: Vec<u8> = runs.iter().flat_map(|&(zeros, length)| {
                (0..length).map(move |i| if zeros { 0 } else { i.to_le_bytes()[0] | 1 })
            }).collect();
            let mut written = line.clone();
            write_base64(&mut written, &bytes);
            prop_assert_eq!(written, [line, BASE64.encode(&bytes).into_bytes()].concat());
        }

        #[test]
        fn strings_are_json(text in any::<String>()) {
            let mut line = Vec::new();
            write_string(&mut line, &text);
            prop_assert_eq!(serde_json::from_slice::<String>(&line).unwrap(), text);
        }
    }
}
