//! Compressed bytes of a layer's blob in, bytes of its tar out, both hashed on the way.
//!
//! ```text
//! ChunkSource ──► sha256/512 of the blob ──► gzip | zstd | nothing ──► sha256 of the tar ──► BufRead
//! ```
//! The compression is told by magic bytes; media types are claims. A buffer is hashed right after it is filled, while
//! it is in the cache of the core. Where cores are idle, a large layer is inflated on one of them, ahead of the reader, and
//! hashed on another. A buffer is lent to hash and reader from where it lies.

mod ahead;
mod error;
mod gzip;
mod hashing;
mod inflater;
mod pool;
mod zstd;

use std::io::{self, BufRead, Read};
use std::mem;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use self::ahead::Ahead;
pub use self::error::Error;
use self::hashing::Hashing;
use self::inflater::Inflater;
use crate::cores::Cores;
use crate::limits::Ratio;
use larder_model::digest::{Algorithm, Digest};
use larder_model::seal::Compression;

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

/// Tar bytes after which another processor is worth a thread.
const WORTH: u64 = 8 << 20;

/// The decoder of one blob; a [`BufRead`] over its tar. Errors come as [`io::Error`] around [`Error`].
pub struct Decoder<S> {
    place: Place<S>,
    cores: Option<Arc<Cores>>,
    /// Takes the inflater elsewhere, where its source may go.
    take_ahead: Option<TakeAhead<S>>,
    /// Bytes that the reader has not had yet.
    tar: Bytes,
    /// Bytes that were brought to the reader.
    size: u64,
}

type TakeAhead<S> = fn(Box<Inflater<S>>) -> Result<Ahead, Box<Inflater<S>>>;

/// Where the inflater is.
enum Place<S> {
    Here(Box<Inflater<S>>),
    Ahead(Ahead),
    /// On the way to another thread.
    Moving,
}

impl<S> std::fmt::Debug for Decoder<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("size", &self.size).finish_non_exhaustive()
    }
}

impl<S: ChunkSource> Decoder<S> {
    /// A decoder whose blob digest is computed in `algorithm`.
    pub fn new(source: S, algorithm: Algorithm, ratio: Ratio) -> Self {
        let inflater = Inflater::new(source, algorithm, ratio);
        let place = Place::Here(Box::new(inflater));
        Decoder { place, cores: None, take_ahead: None, tar: Bytes::new(), size: 0 }
    }

    /// A decoder of a tar that is not compressed, whatever its first bytes look like.
    pub fn uncompressed(source: S, algorithm: Algorithm) -> Self {
        let mut decoder = Decoder::new(source, algorithm, Ratio::default());
        decoder.here(Inflater::set_plain);
        decoder
    }

    /// Takes the other ones of `cores` into use while layers leave them idle: hashes there, and inflates there if it may
    /// [go ahead](Self::ahead).
    #[must_use]
    pub fn beside(mut self, cores: Arc<Cores>) -> Self {
        self.here(|inflater| inflater.hashing.beside(Arc::clone(&cores)));
        self.cores = Some(cores);
        self
    }

    /// Lets the inflater, and the source with it, move to a thread of their own.
    #[must_use]
    pub fn ahead(mut self) -> Self
    where
        S: Send + 'static,
    {
        self.take_ahead = Some(Ahead::start);
        self
    }

    /// Inflates by what every program has, where this one was built with something faster: to compare the two.
    #[must_use]
    pub fn portable(mut self) -> Self {
        self.here(|inflater| inflater.portable = true);
        self
    }

    fn here(&mut self, change: impl FnOnce(&mut Inflater<S>)) {
        if let Place::Here(inflater) = &mut self.place {
            change(inflater);
        }
    }

    /// What the magic bytes said; reads the first bytes of the blob if none were read yet. To be asked before the tar is read.
    ///
    /// # Errors
    /// [`Error::Source`].
    pub fn compression(&mut self) -> Result<Compression, Error> {
        match &mut self.place {
            Place::Here(inflater) => inflater.compression(),
            Place::Ahead(_) | Place::Moving => Err(Error::Failed),
        }
    }

    /// Reads to the very end, so that every checksum in the blob is verified and nothing is left over.
    ///
    /// # Errors
    /// As reading.
    pub fn finish(mut self) -> Result<Decoded, Error> {
        while self.refill()? {}
        match self.place {
            Place::Here(inflater) => inflater.finish(),
            Place::Ahead(ahead) => ahead.finish(),
            Place::Moving => Err(Error::Failed),
        }
    }

    /// Digest and size of the blob, whatever is in it and whatever went wrong before; reads the rest of it, without inflating.
    /// `None` if that does not come.
    pub fn blob(self) -> Option<(Digest, u64)> {
        match self.place {
            Place::Here(inflater) => inflater.blob(),
            Place::Ahead(ahead) => ahead.blob(),
            Place::Moving => None,
        }
    }

    /// Brings the next tar bytes, whether or not the last ones were read; `false` at the end.
    fn refill(&mut self) -> Result<bool, Error> {
        // A buffer comes back to who fills it when nobody holds it.
        self.tar = Bytes::new();
        if self.size >= WORTH {
            self.go_ahead();
        }
        let piece = match &mut self.place {
            Place::Here(inflater) => inflater.next(),
            Place::Ahead(ahead) => ahead.next(),
            Place::Moving => Err(Error::Failed),
        };
        self.tar = piece?.unwrap_or_default();
        self.size += self.tar.len() as u64;
        Ok(!self.tar.is_empty())
    }

    fn go_ahead(&mut self) {
        let Some(take_ahead) = self.take_ahead else { return };
        let is_idle = self.cores.as_ref().is_some_and(|cores| cores.outnumber_layers());
        if !is_idle || !matches!(&self.place, Place::Here(inflater) if inflater.is_work()) {
            return;
        }
        if let Place::Here(inflater) = mem::replace(&mut self.place, Place::Moving) {
            self.place = match take_ahead(inflater) {
                Ok(ahead) => Place::Ahead(ahead),
                Err(inflater) => {
                    self.take_ahead = None;
                    Place::Here(inflater)
                }
            };
        }
    }
}

/// Inflates a blob to its end and hashes nothing: what a decoder cannot be quicker than. Answers the size of the tar, bytes,
/// and nothing of what is in it, for it is not verified.
///
/// # Errors
/// As [`Decoder`].
pub fn inflate_only<S: ChunkSource>(source: S, ratio: Ratio) -> Result<u64, Error> {
    let mut inflater = Inflater::new(source, Algorithm::Sha256, ratio);
    inflater.hashing = Hashing::none();
    let mut size = 0;
    while let Some(tar) = inflater.next()? {
        size += tar.len() as u64;
    }
    Ok(size)
}

impl<S: ChunkSource> BufRead for Decoder<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.tar.is_empty() {
            self.refill().map_err(io::Error::from)?;
        }
        Ok(&self.tar)
    }

    fn consume(&mut self, amount: usize) {
        self.tar.advance(amount.min(self.tar.len()));
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
mod tests;
