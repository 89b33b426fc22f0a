//! Sources of a layer's data: a channel, another process, a file, a volume.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::Counters;
use crate::builder::cancel::Cancel;
use crate::builder::remote::{self, End, Piped};
use larder_layer::decode::ChunkSource;

/// Bytes read from a pipe at a time.
const READ_SIZE: usize = 256 << 10;

/// Receives a layer from another process.
pub(super) struct Transfer {
    pipe: File,
    /// Buffer for the next reads.
    buffer: BytesMut,
    /// Result of the transfer, read at the end of the pipe.
    end: Option<End>,
    /// Receives the reason if the transfer fails.
    failure: Arc<OnceLock<remote::Error>>,
}

impl Transfer {
    pub(super) fn new(piped: Piped, failure: Arc<OnceLock<remote::Error>>) -> Self {
        Transfer { pipe: piped.pipe, buffer: BytesMut::new(), end: Some(piped.end), failure }
    }
}

impl ChunkSource for Transfer {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.buffer.len() < READ_SIZE / 4 {
            // Earlier chunks are still in use elsewhere, and the rest of the buffer is too small for a read.
            self.buffer = BytesMut::zeroed(READ_SIZE);
        }
        let read = self.pipe.read(&mut self.buffer)?;
        if read > 0 {
            return Ok(Some(self.buffer.split_to(read).freeze()));
        }
        // The end of the pipe is the end of the layer only if the sender confirms it.
        match self.end.take().map(End::wait) {
            None | Some(Ok(())) => Ok(None),
            Some(Err(e)) => {
                let message = e.to_string();
                let _ = self.failure.set(e);
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, message))
            }
        }
    }
}

/// Counts the bytes of a source as received.
pub(super) struct Counted<S> {
    pub(super) source: S,
    pub(super) counters: Arc<Counters>,
}

impl<S: ChunkSource> ChunkSource for Counted<S> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let chunk = self.source.next()?;
        let len = chunk.as_ref().map_or(0, Bytes::len) as u64;
        self.counters.received.fetch_add(len, Ordering::Relaxed);
        Ok(chunk)
    }
}

/// Measures the time that the extraction waits for a source.
pub(super) struct Timed<S> {
    pub(super) source: S,
    pub(super) counters: Arc<Counters>,
}

impl<S: ChunkSource> ChunkSource for Timed<S> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let began = Instant::now();
        let chunk = self.source.next()?;
        self.counters.waited(began.elapsed(), chunk.is_none());
        Ok(chunk)
    }
}

/// Limits a source. It fails if the source is too long or the build is cancelled.
pub(in crate::builder) struct Bounded<S> {
    pub(in crate::builder) source: S,
    /// Maximum number of bytes still allowed.
    pub(in crate::builder) left: u64,
    pub(in crate::builder) cancel: Cancel,
}

impl<S: ChunkSource> ChunkSource for Bounded<S> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.cancel.reason().is_some() {
            return Err(io::Error::other("interrupted"));
        }
        let chunk = self.source.next()?;
        let len = chunk.as_ref().map_or(0, Bytes::len) as u64;
        let longer =
            || io::Error::new(io::ErrorKind::InvalidData, "the tar is longer than its recorded size");
        self.left = self.left.checked_sub(len).ok_or_else(longer)?;
        Ok(chunk)
    }
}

pub(super) enum Message {
    Chunk(Bytes),
    /// All bytes were sent. If the channel ends without it, the sender failed.
    End,
}

/// The blocking end of the channel.
pub(super) struct Received(pub(super) mpsc::Receiver<Message>);

impl ChunkSource for Received {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.0.blocking_recv() {
            Some(Message::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Message::End) => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was aborted")),
        }
    }
}
