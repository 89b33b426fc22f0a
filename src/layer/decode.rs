//! Compressed bytes of a layer's blob in, bytes of its tar out, both hashed on the way.
//!
//! ```text
//! ChunkSource ──► sha256/512 of the blob ──► gzip | zstd | nothing ──► sha256 of the tar ──► BufRead
//! ```
//! The compression is told by magic bytes; media types are claims. A buffer is hashed right after it is filled, while
//! it is in the cache of the core, or on an idle core while the reader has it and the next one is filled; it is lent to the
//! reader from where it lies.

mod error;
mod gzip;
mod hashing;
mod pool;
mod zstd;

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

pub use self::error::Error;
use self::hashing::Hashing;
use self::pool::Pool;
use crate::layer::cores::Cores;
use crate::layer::limits::Ratio;
use crate::model::digest::{Algorithm, Digest};
use crate::model::seal::Compression;

/// Where the bytes of a blob come from.
pub trait ChunkSource {
    /// The next bytes in order, blocking until there are some; `None` is the true end of the blob.
    ///
    /// # Errors
    /// Whatever kept the blob from being read to its end. A sender that went away is an error, never an end.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// What was read, once a blob has been read to its very end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Digest of the blob's bytes, in the algorithm that was asked for.
    pub blob: Digest,
    /// Size of the blob, bytes.
    pub blob_size: u64,
    /// sha256 of the tar (OCI image spec, config.md, "Layer DiffID").
    pub diff_id: Digest,
    /// Size of the tar, bytes.
    pub size: u64,
    /// What the magic bytes said.
    pub compression: Compression,
}

/// How far one step of a codec came, bytes.
struct Step {
    read: usize,
    written: usize,
}

/// A decompressor fed by hand. Another gzip needs no more than this.
trait Codec: Send {
    /// Inflates from `input` into `output`; no progress asks for more input.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, String>;

    /// Whether the blob may end here: between members or frames, with nothing held back.
    fn may_end(&self) -> bool;
}

/// What a blob goes through.
enum Stage {
    /// The first bytes have not come yet.
    Sniff,
    /// The chunks are the tar.
    Plain,
    Codec {
        name: &'static str,
        codec: Box<dyn Codec>,
        pool: Pool,
    },
    /// An error was returned; nothing more comes.
    Failed,
}

/// The decoder of one blob; a [`BufRead`] over its tar. Errors come as [`io::Error`] around [`Error`].
pub struct Decoder<S> {
    source: S,
    input: Bytes,
    ended: bool,
    hashing: Hashing,
    blob_size: u64,
    stage: Stage,
    compression: Compression,
    size: u64,
    /// A buffer with tar bytes; the reader had those in front of `start`, and none lie behind `end`.
    tar: Bytes,
    start: usize,
    end: usize,
    ratio: Ratio,
    portable: bool,
}

impl<S> std::fmt::Debug for Decoder<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("compression", &self.compression)
            .field("blob_size", &self.blob_size)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl<S: ChunkSource> Decoder<S> {
    /// A decoder whose blob digest is computed in `algorithm`.
    pub fn new(source: S, algorithm: Algorithm, ratio: Ratio) -> Self {
        Decoder {
            source,
            input: Bytes::new(),
            ended: false,
            hashing: Hashing::new(algorithm),
            blob_size: 0,
            stage: Stage::Sniff,
            compression: Compression::None,
            size: 0,
            tar: Bytes::new(),
            start: 0,
            end: 0,
            ratio,
            portable: false,
        }
    }

    /// Hashes on another one of `cores` as soon as that one is idle.
    #[must_use]
    pub fn beside(mut self, cores: Arc<Cores>) -> Self {
        self.hashing.beside(cores);
        self
    }

    /// Inflates by what every program has, where this one was built with something faster: to compare the two.
    #[must_use]
    pub fn portable(mut self) -> Self {
        self.portable = true;
        self
    }

    /// A decoder of a tar that is not compressed, whatever its first bytes look like.
    pub fn uncompressed(source: S, algorithm: Algorithm) -> Self {
        let mut decoder = Decoder::new(source, algorithm, Ratio::default());
        decoder.stage = Stage::Plain;
        decoder.hashing.is_plain();
        decoder
    }

    /// What the magic bytes said; reads the first bytes of the blob if none were read yet.
    ///
    /// # Errors
    /// [`Error::Source`].
    pub fn compression(&mut self) -> Result<Compression, Error> {
        if matches!(self.stage, Stage::Sniff) {
            self.sniff()?;
        }
        Ok(self.compression)
    }

    /// Reads to the very end, so that every checksum in the blob is verified and nothing is left over.
    ///
    /// # Errors
    /// As reading.
    pub fn finish(mut self) -> Result<Decoded, Error> {
        self.start = self.end;
        while self.refill()? {
            self.start = self.end;
        }
        let (blob, diff_id) = self.hashing.finish()?;
        Ok(Decoded {
            diff_id,
            blob,
            blob_size: self.blob_size,
            size: self.size,
            compression: self.compression,
        })
    }

    /// Takes the next chunk from the source; `false` at the end of the blob.
    fn receive(&mut self) -> Result<bool, Error> {
        while !self.ended {
            let Some(chunk) = self.source.next().map_err(Error::Source)? else {
                self.ended = true;
                break;
            };
            if chunk.is_empty() {
                continue;
            }
            self.hashing.blob(&chunk)?;
            self.blob_size += chunk.len() as u64;
            if self.input.is_empty() {
                self.input = chunk;
            } else {
                let mut joined = BytesMut::from(&self.input[..]);
                joined.extend_from_slice(&chunk);
                self.input = joined.freeze();
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn sniff(&mut self) -> Result<(), Error> {
        while self.input.len() < 4 && self.receive()? {}
        let codec: (&'static str, Box<dyn Codec>) = match *self.input {
            [0x1f, 0x8b, ..] => {
                self.compression = Compression::Gzip;
                ("gzip", gzip::codec(self.portable))
            }
            // A frame, or a skippable frame in front of one (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                self.compression = Compression::Zstd;
                ("zstd", Box::new(zstd::Zstd::new().map_err(Error::Context)?))
            }
            _ => {
                self.hashing.is_plain();
                self.stage = Stage::Plain;
                return Ok(());
            }
        };
        self.stage = Stage::Codec { name: codec.0, codec: codec.1, pool: Pool::default() };
        Ok(())
    }

    /// Brings the next tar bytes to `start..end`; `false` at the end. Called only when none are left there.
    fn refill(&mut self) -> Result<bool, Error> {
        if matches!(self.stage, Stage::Sniff) {
            self.sniff()?;
        }
        let filled = match self.stage {
            Stage::Failed => return Err(Error::Failed),
            Stage::Plain | Stage::Sniff => self.take_plain(),
            Stage::Codec { .. } => self.inflate(),
        };
        match filled.and_then(|filled| self.lend(filled)) {
            Ok(filled) => Ok(filled),
            Err(error) => {
                self.stage = Stage::Failed;
                (self.start, self.end) = (0, 0);
                Err(error)
            }
        }
    }

    /// Counts and hashes the first `filled` bytes of the buffer; false where there are none.
    fn lend(&mut self, filled: usize) -> Result<bool, Error> {
        (self.start, self.end) = (0, filled);
        self.size += filled as u64;
        if filled > 0 {
            self.hashing.tar(&self.tar.slice(..filled))?;
        }
        Ok(filled > 0)
    }

    /// The chunk itself is the buffer.
    fn take_plain(&mut self) -> Result<usize, Error> {
        if self.input.is_empty() {
            self.receive()?;
        }
        self.tar = std::mem::take(&mut self.input);
        Ok(self.tar.len())
    }

    /// Fills a buffer, or as much of it as the rest of the blob gives.
    fn inflate(&mut self) -> Result<usize, Error> {
        let Stage::Codec { pool, .. } = &mut self.stage else { return Err(Error::Failed) };
        pool.put(std::mem::take(&mut self.tar));
        let mut buffer = pool.take();
        let filled = self.fill(&mut buffer);
        self.tar = buffer.freeze();
        filled
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        loop {
            let Stage::Codec { name, codec, .. } = &mut self.stage else {
                return Err(Error::Failed);
            };
            let corrupt = |reason, at| Error::Corrupt { codec: name, at, reason };
            let at = self.blob_size - self.input.len() as u64;
            let step =
                codec.step(&self.input, &mut buffer[filled..]).map_err(|reason| corrupt(reason, at))?;
            self.input.advance(step.read);
            filled += step.written;
            let input = self.blob_size - self.input.len() as u64;
            let output = self.size + filled as u64;
            if self.ratio.is_exceeded(input, output) {
                return Err(Error::Bomb { input, output, max: self.ratio.max });
            }
            if filled == buffer.len() {
                return Ok(filled);
            }
            if step.read > 0 || step.written > 0 {
                continue;
            }
            if !self.input.is_empty() {
                return Err(corrupt("the decoder makes no progress".into(), at));
            }
            let (name, may_end) = (*name, codec.may_end());
            if !self.receive()? {
                return if may_end { Ok(filled) } else { Err(Error::Truncated { codec: name, at }) };
            }
        }
    }
}

impl<S: ChunkSource> BufRead for Decoder<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.refill().map_err(io::Error::from)?;
        }
        Ok(&self.tar[self.start..self.end])
    }

    fn consume(&mut self, amount: usize) {
        self.start = (self.start + amount).min(self.end);
    }
}

impl<S: ChunkSource> Read for Decoder<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
