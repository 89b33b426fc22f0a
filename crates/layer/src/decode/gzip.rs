//! gzip (RFC 1952): many members in a row (pigz, estargz), zero padding after the last as GNU gzip tolerates it.
//!
//! The framing is here, once; what lies between header and trailer is inflated by [`isal`] or by [`zlib`], so that a blob
//! means the same whichever of them is there.

mod header;
#[cfg(all(feature = "isal", target_arch = "x86_64"))]
mod isal;
mod zlib;

use crc_fast::CrcAlgorithm;

use self::header::Header;
use super::{Codec, Step};

/// Bytes of a trailer: CRC-32 and length of the content.
const TRAILER: usize = 8;

/// What came of one call of an inflater, bytes.
struct Inflated {
    read: usize,
    written: usize,
    /// Whether the stream has ended, and which of the bytes that were read lie behind its end.
    end: Option<Surplus>,
}

/// Bytes that were read too far: a trailer's at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Surplus {
    bytes: [u8; TRAILER],
    len: usize,
}

/// Raw deflate (RFC 1951), fed by hand.
trait Inflate: Send {
    /// Inflates from `input` into `output` as far as it can. Not called again once the stream has ended, until
    /// [`reset`](Inflate::reset).
    fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String>;

    /// Makes ready for another stream.
    fn reset(&mut self);
}

/// The fastest decoder that this program was built with, or the one that every program has.
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
    place: Place,
    /// Of the header, then of the content.
    crc: crc_fast::Digest,
    /// Content of the member, bytes, as the trailer counts them.
    length: u32,
}

enum Place {
    Header(Header),
    Body,
    Trailer(Surplus),
    Between,
    Padding,
}

impl<I: Inflate> Gzip<I> {
    fn new(inflate: I) -> Self {
        let crc = crc_fast::Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        Gzip { inflate, place: Place::Header(Header::new()), crc, length: 0 }
    }

    /// Reads on in the trailer; false where more of it is to come.
    fn trail(&mut self, input: &[u8], read: &mut usize) -> Result<bool, String> {
        let Place::Trailer(trailer) = &mut self.place else { return Ok(true) };
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
        self.place = Place::Between;
        Ok(true)
    }

    /// Compares the content of a member with what its trailer says.
    fn check(&mut self, trailer: [u8; TRAILER]) -> Result<(), String> {
        let [a, b, c, d, length @ ..] = trailer;
        if u64::from(u32::from_le_bytes([a, b, c, d])) != self.crc.finalize_reset() {
            return Err("the CRC of a member's content is wrong".into());
        }
        let (said, length) = (u32::from_le_bytes(length), std::mem::take(&mut self.length));
        if said != length {
            return Err(format!(
                "a member is said to be {said} bytes long, modulo 2^32, and has {length} of them"
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
            match &mut self.place {
                Place::Header(header) => {
                    let (taken, whole) = header.take(rest, &mut self.crc)?;
                    read += taken;
                    if !whole {
                        return Ok(Step { read, written: 0 });
                    }
                    self.crc.reset();
                    self.place = Place::Body;
                }
                Place::Body => {
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
                    self.place = Place::Trailer(surplus);
                    // What follows may be another member, for which `output` is not empty any more.
                    if !self.trail(input, &mut read)? || inflated.written > 0 {
                        return Ok(Step { read, written: inflated.written });
                    }
                }
                Place::Trailer(_) => {
                    if !self.trail(input, &mut read)? {
                        return Ok(Step { read, written: 0 });
                    }
                }
                Place::Between => match rest.first() {
                    None => return Ok(Step { read, written: 0 }),
                    Some(0) => self.place = Place::Padding,
                    Some(0x1f) => {
                        self.inflate.reset();
                        self.place = Place::Header(Header::new());
                    }
                    Some(_) => return Err("something other than a member follows the last one".into()),
                },
                Place::Padding => {
                    return match rest.iter().find(|b| **b != 0) {
                        None => Ok(Step { read: input.len(), written: 0 }),
                        Some(_) => Err("something other than zeros follows the last member".into()),
                    };
                }
            }
        }
    }

    fn may_end(&self) -> bool {
        matches!(self.place, Place::Between | Place::Padding)
    }
}

#[cfg(test)]
mod tests;
