//! Refuses lines in an HTTP/1 head that end with a bare LF.
//!
//! RFC 9112, 2.2 allows a recipient to accept a bare LF as a line end, and hyper does. A proxy with a
//! different rule sees different requests, which allows request smuggling. So this replaces an LF without a
//! preceding CR by NUL, which no head can contain, and ends the stream there. hyper then answers 400 and
//! closes the connection.
//!
//! The parser follows the message framing (RFC 9112, 6) only as far as needed to find the next head. It
//! passes framing that it does not understand, because hyper then refuses the whole message. It also covers
//! trailers. hyper itself checks the line ends of chunks. HTTP/2 has no lines and passes unchanged.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Start of an HTTP/2 connection (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes appended after a refused line, because hyper parses a head only when it is complete.
const END: &[u8] = b"\r\n\r\n";
/// Maximum length of the kept part of a line, bytes. It is enough for the two headers that determine the end
/// of a message.
const MAX_KEPT: usize = 128;

/// A connection whose heads must have strict line ends.
#[derive(Debug)]
pub(super) struct StrictLines<I> {
    io: I,
    scan: Scan,
}

impl<I> StrictLines<I> {
    pub(super) fn new(io: I) -> Self {
        StrictLines { io, scan: Scan::default() }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for StrictLines<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Position::Refused(sent) = self.scan.at {
            let more = &END[sent..][..buffer.remaining().min(END.len() - sent)];
            buffer.put_slice(more);
            self.scan.at = Position::Refused(sent + more.len());
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(context, buffer))?;
        let passed = self.scan.pass(&mut buffer.filled_mut()[before..]);
        buffer.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for StrictLines<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The position of the next byte in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// In the first bytes of a connection, of which this number match [`PREFACE`].
    Preface(usize),
    /// In a message head.
    Head,
    /// In a body or a chunk, with `left` bytes remaining.
    Body { left: u64, chunk: bool },
    /// In the line with the size of a chunk.
    ChunkSize,
    /// In the line end after a chunk.
    ChunkEnd,
    /// In the trailers of a message.
    Trailers,
    /// In data that is not parsed.
    Through,
    /// After a bare LF. This number of bytes of [`END`] were passed on.
    Refused(usize),
}

#[derive(Debug)]
struct Scan {
    at: Position,
    line: Vec<u8>,
    after_cr: bool,
    head: Head,
}

/// The framing of a message, from its head so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    begun: bool,
    chunked: bool,
    length: u64,
}

impl Default for Scan {
    fn default() -> Self {
        Scan { at: Position::Preface(0), line: Vec::new(), after_cr: false, head: Head::default() }
    }
}

impl Scan {
    /// Scans the next bytes and returns the number of bytes to pass on. A bare LF ends them and is replaced
    /// by NUL.
    fn pass(&mut self, bytes: &mut [u8]) -> usize {
        let length = bytes.len();
        let mut rest = bytes;
        while let Some(first) = rest.first_mut() {
            match self.at {
                Position::Through => return length,
                Position::Refused(_) => return length - rest.len(),
                Position::Body { left, chunk } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                    let left = left - here as u64;
                    rest = &mut rest[here..];
                    self.at = match (left, chunk) {
                        (0, false) => Position::Head,
                        (0, true) => Position::ChunkEnd,
                        _ => Position::Body { left, chunk },
                    };
                    continue;
                }
                Position::Preface(matched) if *first == PREFACE[matched] => {
                    self.at = Position::Preface(matched + 1);
                    if matched + 1 == PREFACE.len() {
                        self.at = Position::Through;
                    }
                }
                Position::Preface(matched) => {
                    self.at = Position::Head;
                    for byte in &PREFACE[..matched] {
                        self.byte(&mut byte.clone());
                    }
                    continue;
                }
                _ => self.byte(first),
            }
            rest = &mut rest[1..];
        }
        length
    }

    /// Scans one byte of a line.
    fn byte(&mut self, byte: &mut u8) {
        let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
        if *byte != b'\n' {
            if self.line.len() < MAX_KEPT {
                self.line.push(*byte);
            }
            return;
        }
        if !after_cr {
            *byte = 0;
            self.at = Position::Refused(0);
            return;
        }
        let line = std::mem::take(&mut self.line);
        let long = line.len() == MAX_KEPT;
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        self.at = match self.at {
            Position::Head if line.is_empty() => self.end_of_head(),
            Position::Head => self.head_line(line, long),
            Position::ChunkSize => chunk(line),
            Position::ChunkEnd if line.is_empty() => Position::ChunkSize,
            Position::Trailers if line.is_empty() => Position::Head,
            Position::Trailers => Position::Trailers,
            _ => Position::Through,
        };
    }

    fn end_of_head(&mut self) -> Position {
        match std::mem::take(&mut self.head) {
            // Empty lines before a request (RFC 9112, 2.2).
            Head { begun: false, .. } => Position::Head,
            // Chunked encoding overrides a length (RFC 9112, 6.3).
            Head { chunked: true, .. } => Position::ChunkSize,
            Head { length: 0, .. } => Position::Head,
            Head { length, .. } => Position::Body { left: length, chunk: false },
        }
    }

    fn head_line(&mut self, line: &[u8], long: bool) -> Position {
        if !std::mem::replace(&mut self.head.begun, true) {
            return Position::Head;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Position::Head };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.head.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
            let Some(length) = length.filter(|_| !long) else { return Position::Through };
            self.head.length = length;
        }
        Position::Head
    }
}

/// Parses the line with the size of a chunk and returns the next position.
fn chunk(line: &[u8]) -> Position {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let size = std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    match size {
        Some(0) => Position::Trailers,
        Some(left) => Position::Body { left, chunk: true },
        None => Position::Through,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the bytes that pass if they arrive in pieces of this size.
    fn in_pieces(bytes: &[u8], size: usize) -> Vec<u8> {
        let mut scan = Scan::default();
        let mut passed = Vec::new();
        for piece in bytes.chunks(size) {
            let mut piece = piece.to_vec();
            let length = scan.pass(&mut piece);
            passed.extend_from_slice(&piece[..length]);
        }
        passed
    }

    /// Returns the bytes that pass, after checking that the result is the same for all piece sizes.
    fn passed(bytes: &[u8]) -> Vec<u8> {
        let whole = in_pieces(bytes, bytes.len());
        for size in 1..bytes.len() {
            assert_eq!(in_pieces(bytes, size), whole, "in pieces of {size}");
        }
        whole
    }

    #[test]
    fn valid_messages_pass_unchanged() {
        for right in [
            &b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"[..],
            b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n3;x=y\r\n\n\n\n\r\n0\r\nA: b\r\n\r\n\
              GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n\n",
            b"PUT / HTTP/1.1\r\nHost: h\r\n\r\n",
        ] {
            assert_eq!(passed(right), right, "{}", right.escape_ascii());
        }
    }

    #[test]
    fn a_bare_line_feed_becomes_nul() {
        for (wrong, at) in [
            (&b"GET / HTTP/1.1\nHost: h\r\n\r\n"[..], 14),
            (b"GET / HTTP/1.1\r\nHost: h\n\r\n", 23),
            (b"GET / HTTP/1.1\r\nHost: h\r\n\n", 25),
            (b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 0),
            (b"PRI * HTTP/2.0\r\n\nSM", 16),
            (b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n\n\n\n", 40),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n0\r\nA: b\n\r\n", 60),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\nHost: h", 66),
        ] {
            assert_eq!(wrong[at], b'\n', "{}", wrong.escape_ascii());
            let wanted = [&wrong[..at], &[0]].concat();
            assert_eq!(passed(wrong), wanted, "{}", wrong.escape_ascii());
        }
    }
}
