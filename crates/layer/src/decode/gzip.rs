//! gzip (RFC 1952): any number of members (pigz, estargz), with zero padding after the last one, which GNU
//! gzip also tolerates.
//!
//! The framing is implemented once, in this module. [`isal`] or [`zlib`] decodes the data between header and
//! trailer, so a blob gives the same result with either.

mod header;
#[cfg(all(feature = "isal", target_arch = "x86_64"))]
mod isal;
mod zlib;

use crc_fast::CrcAlgorithm;

use self::header::Header;
use super::{Codec, Step};

/// Size of a trailer, bytes: CRC-32 and length of the content.
const TRAILER: usize = 8;

/// The result of one call of an inflater, bytes.
struct Inflated {
    read: usize,
    written: usize,
    /// `Some` if the stream has ended, with the bytes that were read beyond its end.
    end: Option<Surplus>,
}

/// Bytes that were read beyond the end of a stream: at most a trailer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Surplus {
    bytes: [u8; TRAILER],
    len: usize,
}

/// A push-style decoder for raw deflate (RFC 1951).
trait Inflate: Send {
    /// Inflates from `input` into `output` as far as possible. After the end of the stream, it is not called
    /// again until [`reset`](Inflate::reset).
    fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String>;

    /// Prepares for the next stream.
    fn reset(&mut self);
}

/// Returns the fastest decoder of this build, or the portable one.
pub(super) fn codec(portable: bool) -> Box<dyn Codec> {
    #[cfg(all(feature = "isal", target_arch = "x86_64"))]
    if !portable {
        return Box::new(Gzip::new(larder_isal::Isal::new()));
    }
    let _ = portable;
    Box::new(Gzip::new(zlib::Zlib::new()))
}

struct Gzip<I> {
    inflate: I,
    state: State,
    /// CRC of the header, then of the content.
    crc: crc_fast::Digest,
    /// Length of the member's content, bytes, modulo 2^32.
    length: u32,
}

enum State {
    Header(Header),
    Body,
    Trailer(Surplus),
    Between,
    Padding,
}

impl<I: Inflate> Gzip<I> {
    fn new(inflate: I) -> Self {
        let crc = crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        Gzip { inflate, state: State::Header(Header::new()), crc, length: 0 }
    }

    /// Continues reading the trailer; returns `false` if more of it is needed.
    fn read_trailer(&mut self, input: &[u8], read: &mut usize) -> Result<bool, String> {
        let State::Trailer(trailer) = &mut self.state else { return Ok(true) };
        let rest = &input[*read..];
        let taken = rest.len().min(TRAILER - trailer.len);
        trailer.bytes[trailer.len..trailer.len + taken].copy_from_slice(&rest[..taken]);
        trailer.len += taken;
        *read += taken;
        if trailer.len < TRAILER {
            return Ok(false);
        }
        let bytes = trailer.bytes;
        self.check(bytes)?;
        self.state = State::Between;
        Ok(true)
    }

    /// Compares the content of a member with its trailer.
    fn check(&mut self, trailer: [u8; TRAILER]) -> Result<(), String> {
        let [a, b, c, d, length @ ..] = trailer;
        if u64::from(u32::from_le_bytes([a, b, c, d])) != self.crc.finalize_reset() {
            return Err("the CRC of a member's content is wrong".into());
        }
        let (stated, length) = (u32::from_le_bytes(length), std::mem::take(&mut self.length));
        if stated != length {
            return Err(format!(
                "the trailer of a member gives its length as {stated} bytes, modulo 2^32, but it has {length}"
            ));
        }
        Ok(())
    }
}

impl<I: Inflate> Codec for Gzip<I> {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, String> {
        let mut read = 0;
        loop {
            let rest = &input[read..];
            match &mut self.state {
                State::Header(header) => {
                    let (taken, whole) = header.take(rest, &mut self.crc)?;
                    read += taken;
                    if !whole {
                        return Ok(Step { read, written: 0 });
                    }
                    self.crc.reset();
                    self.state = State::Body;
                }
                State::Body => {
                    let inflated = self.inflate.inflate(rest, output)?;
                    read += inflated.read;
                    let content = &output[..inflated.written];
                    self.crc.update(content);
                    // The trailer counts modulo 2^32.
                    #[expect(clippy::cast_possible_truncation, reason = "RFC 1952, 2.3.1, ISIZE")]
                    let counted = content.len() as u32;
                    self.length = self.length.wrapping_add(counted);
                    let Some(surplus) = inflated.end else {
                        return Ok(Step { read, written: inflated.written });
                    };
                    self.state = State::Trailer(surplus);
                    // The next bytes may be another member, but `output` is not empty.
                    if !self.read_trailer(input, &mut read)? || inflated.written > 0 {
                        return Ok(Step { read, written: inflated.written });
                    }
                }
                State::Trailer(_) => {
                    if !self.read_trailer(input, &mut read)? {
                        return Ok(Step { read, written: 0 });
                    }
                }
                State::Between => match rest.first() {
                    None => return Ok(Step { read, written: 0 }),
                    Some(0) => self.state = State::Padding,
                    Some(0x1f) => {
                        self.inflate.reset();
                        self.state = State::Header(Header::new());
                    }
                    Some(_) => return Err("something other than a member follows the last one".into()),
                },
                State::Padding => {
                    return match rest.iter().find(|b| **b != 0) {
                        None => Ok(Step { read: input.len(), written: 0 }),
                        Some(_) => Err("something other than zeros follows the last member".into()),
                    };
                }
            }
        }
    }

    fn may_end(&self) -> bool {
        matches!(self.state, State::Between | State::Padding)
    }
}

#[cfg(test)]
mod tests;
