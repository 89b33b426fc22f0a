//! Reads a blob to its end, decompresses it by its magic bytes, and hashes input and output.

use bytes::{Buf, Bytes, BytesMut};

use super::hashing::Hashing;
use super::pool::Pool;
use super::{ChunkSource, Codec, Decoded, Error, gzip, zstd};
use crate::limits::Ratio;
use larder_model::digest::{Algorithm, Digest};
use larder_model::seal::Compression;

/// The decoding state of a blob.
enum Stage {
    /// The first bytes have not arrived yet.
    Sniff,
    /// The chunks are the tar.
    Plain,
    Codec {
        name: &'static str,
        codec: Box<dyn Codec>,
        pool: Pool,
    },
    /// An error was returned; no more data follows.
    Failed,
}

pub(super) struct Inflater<'a> {
    source: Box<dyn ChunkSource + Send + 'a>,
    input: Bytes,
    ended: bool,
    pub(super) hashing: Hashing,
    blob_size: u64,
    stage: Stage,
    compression: Compression,
    size: u64,
    ratio: Ratio,
    pub(super) portable: bool,
}

impl<'a> Inflater<'a> {
    pub(super) fn new(source: Box<dyn ChunkSource + Send + 'a>, algorithm: Algorithm, ratio: Ratio) -> Self {
        Inflater {
            source,
            input: Bytes::new(),
            ended: false,
            hashing: Hashing::new(algorithm),
            blob_size: 0,
            stage: Stage::Sniff,
            compression: Compression::None,
            size: 0,
            ratio,
            portable: false,
        }
    }

    /// Treats the blob as an uncompressed tar, regardless of its first bytes.
    pub(super) fn set_plain(&mut self) {
        self.hashing.set_plain();
        self.stage = Stage::Plain;
    }

    /// Reports whether decoding is expensive enough for a core of its own.
    pub(super) fn is_decompressing(&self) -> bool {
        matches!(self.stage, Stage::Codec { .. })
    }

    pub(super) fn compression(&mut self) -> Result<Compression, Error> {
        if matches!(self.stage, Stage::Sniff) {
            self.sniff()?;
        }
        Ok(self.compression)
    }

    /// Returns the next bytes of the tar after hashing them; `None` at the end of a complete blob.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if matches!(self.stage, Stage::Sniff) {
            self.sniff()?;
        }
        let tar = match self.stage {
            Stage::Failed => return Err(Error::Failed),
            Stage::Plain | Stage::Sniff => self.take_plain(),
            Stage::Codec { .. } => self.inflate(),
        };
        let tar = tar.and_then(|tar| {
            self.size += tar.len() as u64;
            if tar.is_empty() {
                return Ok(None);
            }
            self.hashing.tar(&tar)?;
            Ok(Some(tar))
        });
        tar.inspect_err(|_| self.stage = Stage::Failed)
    }

    /// Returns the digests and sizes. Called at the end.
    pub(super) fn finish(self) -> Result<Decoded, Error> {
        let (blob, diff_id) = self.hashing.finish()?;
        let (blob_size, size, compression) = (self.blob_size, self.size, self.compression);
        Ok(Decoded { blob, blob_size, diff_id, size, compression })
    }

    /// Returns digest and size of the blob, regardless of its content. Reads the rest of it without
    /// decompressing. `None` if it cannot be read.
    pub(super) fn blob(mut self) -> Option<(Digest, u64)> {
        self.hashing.end_tar();
        while self.receive().ok()? {
            self.input = Bytes::new();
        }
        let (blob, _) = self.hashing.finish().ok()?;
        Some((blob, self.blob_size))
    }

    /// Receives the next chunk from the source; returns `false` at the end of the blob.
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
        let compression = Compression::detect(&self.input);
        let (name, codec): (&'static str, Box<dyn Codec>) = match compression {
            Compression::None => {
                self.set_plain();
                return Ok(());
            }
            Compression::Gzip => ("gzip", gzip::codec(self.portable)),
            Compression::Zstd => ("zstd", Box::new(zstd::Zstd::new().map_err(Error::Context)?)),
        };
        self.compression = compression;
        self.stage = Stage::Codec { name, codec, pool: Pool::default() };
        Ok(())
    }

    /// Returns the current chunk, without copying.
    fn take_plain(&mut self) -> Result<Bytes, Error> {
        if self.input.is_empty() {
            self.receive()?;
        }
        Ok(std::mem::take(&mut self.input))
    }

    /// Fills a buffer as far as the rest of the blob allows.
    fn inflate(&mut self) -> Result<Bytes, Error> {
        let Stage::Codec { pool, .. } = &mut self.stage else { return Err(Error::Failed) };
        let mut buffer = pool.take();
        let filled = self.fill(&mut buffer)?;
        let buffer = buffer.freeze();
        if let Stage::Codec { pool, .. } = &mut self.stage {
            pool.lend(buffer.clone());
        }
        Ok(buffer.slice(..filled))
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
