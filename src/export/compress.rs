//! Parallel compression of layers. The output does not depend on the number of workers.
//!
//! The tar is cut into blocks of equal size. Each becomes a separate gzip member or zstd frame, and both
//! formats allow several in sequence (RFC 1952, 2.2; RFC 8878, 3). Every reader of layers accepts this,
//! because eStargz and zstd:chunked images have the same structure. Worker `n` of `N` receives the blocks n,
//! n + N, n + 2N …, so no queue is needed to keep the order.

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bytes::Bytes;
use flate2::GzBuilder;

use super::Error;
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_model::io_error::IoError;
use larder_model::seal::Compression;

/// Size of the tar data in one member or frame, bytes.
const BLOCK: usize = 1 << 20;

/// Default level of zlib, which tools that push images also use.
const GZIP_LEVEL: u32 = 6;

/// Default level of zstd.
const ZSTD_LEVEL: i32 = 3;

/// Maximum number of workers; each uses memory for a few blocks.
const MAX_WORKERS: usize = 32;

/// Digest and size of a written blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// sha256 of the blob.
    pub(super) digest: Digest,
    /// Size of the blob, bytes.
    pub(super) size: u64,
}

/// Consumer of the tar's chunks.
pub(super) type ChunkSink<'a> = dyn FnMut(Bytes) -> Result<(), Error> + 'a;

/// Compresses the output of `produce` with gzip or zstd and writes it to `out`.
///
/// # Errors
/// The error of `produce`, or writing to `out` fails.
pub(super) fn encode(
    compression: Compression,
    out: &mut (dyn Write + Send),
    produce: impl FnOnce(&mut ChunkSink<'_>) -> Result<(), Error>,
) -> Result<Written, Error> {
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_WORKERS);
    encode_by(workers, compression, out, produce)
}

fn encode_by(
    workers: usize,
    compression: Compression,
    out: &mut (dyn Write + Send),
    produce: impl FnOnce(&mut ChunkSink<'_>) -> Result<(), Error>,
) -> Result<Written, Error> {
    thread::scope(|scope| {
        let mut to_workers = Vec::with_capacity(workers);
        let mut from_workers = Vec::with_capacity(workers);
        for _ in 0..workers {
            let (sender, blocks) = sync_channel::<Vec<u8>>(1);
            let (encoded, receiver) = sync_channel(1);
            scope.spawn(move || work(compression, &blocks, &encoded));
            to_workers.push(sender);
            from_workers.push(receiver);
        }
        let writer = scope.spawn(move || collect(&from_workers, out));
        let mut cutter = Cutter { to_workers, next: 0, block: Vec::with_capacity(BLOCK), is_open: true };
        let produced = produce(&mut |chunk| cutter.take(&chunk));
        let produced = produced.and_then(|()| cutter.finish());
        // Without senders the workers end, and then the writer.
        drop(cutter);
        let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")));
        match (produced, written) {
            // If the writer fails, the producer fails as well; the writer's error is the cause, so it is
            // returned.
            (Err(Error::Interrupted), _) => Err(Error::Interrupted),
            (_, Err(source)) => Err(IoError::new("writing", "a layer", source).into()),
            (Err(error), Ok(_)) => Err(error),
            (Ok(()), Ok(written)) => Ok(written),
        }
    })
}

/// Cuts the tar into blocks and sends them to the workers.
struct Cutter {
    to_workers: Vec<SyncSender<Vec<u8>>>,
    next: usize,
    block: Vec<u8>,
    is_open: bool,
}

impl Cutter {
    fn take(&mut self, mut chunk: &[u8]) -> Result<(), Error> {
        while !chunk.is_empty() {
            let (now, later) = chunk.split_at(chunk.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            chunk = later;
            if self.block.len() == BLOCK {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Sends the last block. Even an empty tar has one member.
    fn finish(&mut self) -> Result<(), Error> {
        if self.block.is_empty() && self.next > 0 { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> Result<(), Error> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let worker = self.next % self.to_workers.len();
        self.next += 1;
        self.is_open &= self.to_workers[worker].send(block).is_ok();
        if self.is_open {
            Ok(())
        } else {
            Err(IoError::new("writing", "a layer", io::Error::other("the writer ended")).into())
        }
    }
}

fn work(compression: Compression, blocks: &Receiver<Vec<u8>>, encoded: &SyncSender<io::Result<Vec<u8>>>) {
    for block in blocks {
        let result = match compression {
            Compression::Gzip => gzip(&block),
            Compression::Zstd => zstd(&block),
            Compression::None => Ok(block),
        };
        if encoded.send(result).is_err() {
            return;
        }
    }
}

fn gzip(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new()
        .mtime(0)
        .write(Vec::with_capacity(block.len() / 2), flate2::Compression::new(GZIP_LEVEL));
    encoder.write_all(block)?;
    encoder.finish()
}

fn zstd(block: &[u8]) -> io::Result<Vec<u8>> {
    use zstd::bulk::Compressor;
    use zstd::stream::raw::CParameter;
    let mut compressor = Compressor::new(ZSTD_LEVEL)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.compress(block)
}

/// Writes the blocks in order until the next worker has no more.
fn collect(
    from_workers: &[Receiver<io::Result<Vec<u8>>>],
    out: &mut (dyn Write + Send),
) -> io::Result<Written> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size = 0;
    for receiver in from_workers.iter().cycle() {
        let Ok(encoded) = receiver.recv() else { break };
        let encoded = encoded?;
        hasher.update(&encoded);
        size += encoded.len() as u64;
        out.write_all(&encoded)?;
    }
    Ok(Written { digest: hasher.finish(), size })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn encoded(workers: usize, compression: Compression, tar: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let written = encode_by(workers, compression, &mut out, |take| {
            tar.chunks(300_001).try_for_each(|chunk| take(Bytes::copy_from_slice(chunk)))
        });
        let want = Written { digest: Digest::sha256(&out), size: out.len() as u64 };
        assert_eq!(written.unwrap(), want);
        out
    }

    #[test]
    fn output_is_independent_of_the_number_of_workers_and_decompresses() {
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 17] {
            let tar: Vec<u8> = (0..=250).flat_map(|n| [n; 7]).cycle().take(len).collect();
            for compression in [Compression::Gzip, Compression::Zstd] {
                let one = encoded(1, compression, &tar);
                assert_eq!(one, encoded(3, compression, &tar), "{len} {compression:?}");
                let mut back = Vec::new();
                match compression {
                    Compression::Gzip => {
                        flate2::read::MultiGzDecoder::new(&one[..]).read_to_end(&mut back).unwrap()
                    }
                    _ => zstd::stream::read::Decoder::new(&one[..]).unwrap().read_to_end(&mut back).unwrap(),
                };
                assert!(back == tar, "{len} {compression:?}");
            }
        }
    }

    #[test]
    fn the_error_of_the_writer_is_returned() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(nix::libc::ENOSPC))
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = encode_by(2, Compression::Gzip, &mut Full, |take| {
            (0..100).try_for_each(|_| take(Bytes::from(vec![0; BLOCK])))
        });
        let error = written.unwrap_err();
        assert_eq!(error.class(), larder_model::class::Class::NoSpace, "{error}");
    }

    #[test]
    fn the_error_of_the_producer_is_returned() {
        let written = encode_by(2, Compression::Zstd, &mut Vec::new(), |_| Err(Error::ToStream)).unwrap_err();
        assert!(matches!(written, Error::ToStream));
    }
}
