//! Turns the compressed bytes of a layer's blob into the bytes of its tar, and computes both digests on the
//! way.
//!
//! ```text
//! ChunkSource ──► gzip | zstd | nothing ──► BufRead
//!      └──► sha256/512 of the blob └──► sha256 of the tar
//! ```
//! Magic bytes determine the compression, because media types are unverified claims. A buffer of tar is
//! hashed right after it is filled, together with the bytes of the blob that it comes from: all are in the
//! core's cache, and two hashes are computed in less time together than one after the other. If cores are
//! idle, a large layer is decompressed on one core, ahead of the reader, and hashed on another. Buffers are
//! shared with the hasher and the reader without copying.

mod ahead;
mod error;
mod gzip;
mod hashes;
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

/// A source of the bytes of a blob.
pub trait ChunkSource {
    /// Returns the next bytes in order, blocking until there are some. `None` is the true end of the blob.
    ///
    /// # Errors
    /// The error that prevented reading the blob to its end. A sender that disconnects is an error, never an
    /// end.
    fn next(&mut self) -> io::Result<Option<Bytes>>;
}

/// Digests and sizes of a blob that has been read to its very end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Digest of the blob's bytes, in the requested algorithm.
    pub blob: Digest,
    /// Size of the blob, bytes.
    pub blob_size: u64,
    /// sha256 of the tar (OCI image spec, config.md, "Layer DiffID").
    pub diff_id: Digest,
    /// Size of the tar, bytes.
    pub size: u64,
    /// Compression detected from the magic bytes.
    pub compression: Compression,
}

/// Progress of one step of a codec, bytes.
struct Step {
    read: usize,
    written: usize,
}

/// A push-style decompressor. Replacing the gzip implementation requires only this trait.
trait Codec: Send {
    /// Decompresses from `input` into `output`. No progress means that more input is needed.
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, String>;

    /// Reports whether the blob can end here: between members or frames, with no output pending.
    fn may_end(&self) -> bool;
}

/// Tar bytes after which a layer is worth another thread.
const MIN_BYTES_FOR_THREAD: u64 = 8 << 20;

/// The decoder of one blob, a [`BufRead`] over its tar. It is not generic over its source, which returns
/// large chunks, so that this crate contains all code that runs for each byte. Errors are [`io::Error`]
/// values that wrap an [`Error`].
pub struct Decoder<'a> {
    location: Location<'a>,
    cores: Option<Arc<Cores>>,
    /// Moves the inflater to its own thread; `None` if the source must not move.
    take_ahead: Option<TakeAhead<'a>>,
    /// Bytes that the reader has not consumed yet.
    tar: Bytes,
    /// Bytes that were returned to the reader, or are in `tar`.
    size: u64,
}

type TakeAhead<'a> = fn(Box<Inflater<'a>>) -> Result<Ahead, Box<Inflater<'a>>>;

/// The thread on which the inflater runs.
enum Location<'a> {
    CallerThread(Box<Inflater<'a>>),
    OwnThread(Ahead),
    /// In transit to another thread.
    Moving,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("size", &self.size).finish_non_exhaustive()
    }
}

impl<'a> Decoder<'a> {
    /// Creates a decoder that computes the digest of the blob with `algorithm`.
    pub fn new(source: impl ChunkSource + Send + 'a, algorithm: Algorithm, ratio: Ratio) -> Self {
        let inflater = Inflater::new(Box::new(source), algorithm, ratio);
        let location = Location::CallerThread(Box::new(inflater));
        Decoder { location, cores: None, take_ahead: None, tar: Bytes::new(), size: 0 }
    }

    /// Creates a decoder for a tar that is not compressed, regardless of its first bytes.
    pub fn uncompressed(source: impl ChunkSource + Send + 'a, algorithm: Algorithm) -> Self {
        let mut decoder = Decoder::new(source, algorithm, Ratio::default());
        decoder.with_inflater(Inflater::set_plain);
        decoder
    }

    /// Uses other `cores` while layers leave them idle: for hashing, and for decompression if it may [run
    /// ahead](Self::ahead).
    #[must_use]
    pub fn with_cores(mut self, cores: Arc<Cores>) -> Self {
        self.with_inflater(|inflater| inflater.hashing.with_cores(Arc::clone(&cores)));
        self.cores = Some(cores);
        self
    }

    /// Uses the portable decompressor even if this program was built with a faster one, for comparison.
    #[must_use]
    pub fn portable(mut self) -> Self {
        self.with_inflater(|inflater| inflater.portable = true);
        self
    }

    fn with_inflater(&mut self, change: impl FnOnce(&mut Inflater<'a>)) {
        if let Location::CallerThread(inflater) = &mut self.location {
            change(inflater);
        }
    }

    /// Returns the compression according to the magic bytes, reading the start of the blob if necessary. Call
    /// it before reading the tar.
    ///
    /// # Errors
    /// [`Error::Source`], or [`Error::Failed`] if the inflater has moved to another thread.
    pub fn compression(&mut self) -> Result<Compression, Error> {
        match &mut self.location {
            Location::CallerThread(inflater) => inflater.compression(),
            Location::OwnThread(_) | Location::Moving => Err(Error::Failed),
        }
    }

    /// Reads to the very end, so that every checksum in the blob is verified and nothing remains unread.
    ///
    /// # Errors
    /// The same errors as reading.
    pub fn finish(mut self) -> Result<Decoded, Error> {
        while self.refill()? {}
        match self.location {
            Location::CallerThread(inflater) => inflater.finish(),
            Location::OwnThread(ahead) => ahead.finish(),
            Location::Moving => Err(Error::Failed),
        }
    }

    /// Returns digest and size of the blob regardless of its content and of earlier errors. Reads the rest of
    /// it without decompressing. `None` if it cannot be read.
    pub fn blob(self) -> Option<(Digest, u64)> {
        match self.location {
            Location::CallerThread(inflater) => inflater.blob(),
            Location::OwnThread(ahead) => ahead.blob(),
            Location::Moving => None,
        }
    }

    /// Fetches the next tar bytes, whether or not the last ones were consumed. Returns `false` at the end.
    fn refill(&mut self) -> Result<bool, Error> {
        // The pool reuses a buffer once no reader refers to it.
        self.tar = Bytes::new();
        if self.size >= MIN_BYTES_FOR_THREAD {
            self.move_to_own_thread();
        }
        let piece = match &mut self.location {
            Location::CallerThread(inflater) => inflater.next(),
            Location::OwnThread(ahead) => ahead.next(),
            Location::Moving => Err(Error::Failed),
        };
        self.tar = piece?.unwrap_or_default();
        self.size += self.tar.len() as u64;
        Ok(!self.tar.is_empty())
    }

    fn move_to_own_thread(&mut self) {
        let Some(take_ahead) = self.take_ahead else { return };
        let is_idle = self.cores.as_ref().is_some_and(|cores| cores.has_idle());
        if !is_idle
            || !matches!(&self.location, Location::CallerThread(inflater) if inflater.is_decompressing())
        {
            return;
        }
        if let Location::CallerThread(inflater) = mem::replace(&mut self.location, Location::Moving) {
            self.location = match take_ahead(inflater) {
                Ok(ahead) => Location::OwnThread(ahead),
                Err(inflater) => {
                    self.take_ahead = None;
                    Location::CallerThread(inflater)
                }
            };
        }
    }
}

impl Decoder<'static> {
    /// Allows the inflater and its source to move to a thread of their own.
    #[must_use]
    pub fn ahead(mut self) -> Self {
        self.take_ahead = Some(Ahead::start);
        self
    }
}

/// Decompresses a blob to its end without hashing: the lower bound for a decoder in benchmarks. Returns only
/// the size of the tar in bytes, because the content is not verified.
///
/// # Errors
/// The same errors as [`Decoder`].
pub fn inflate_only(source: impl ChunkSource + Send, ratio: Ratio) -> Result<u64, Error> {
    let mut inflater = Inflater::new(Box::new(source), Algorithm::Sha256, ratio);
    inflater.hashing = Hashing::none();
    let mut size = 0;
    while let Some(tar) = inflater.next()? {
        size += tar.len() as u64;
    }
    Ok(size)
}

impl BufRead for Decoder<'_> {
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

impl Read for Decoder<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
