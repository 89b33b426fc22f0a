//! Where the bytes of a layer come from: a channel, another process, a file, a volume.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use super::Counters;
use crate::builder::cancel::Cancel;
use crate::builder::remote::{End, Piped};
use larder_layer::decode::ChunkSource;
use larder_model::class::Class;

/// Bytes of a pipe that are read at once.
const PIECE: usize = 256 << 10;

/// The receiving end of a layer that another process sends.
pub(super) struct Transfer {
    pipe: File,
    /// Memory for what is read next.
    buffer: BytesMut,
    /// Taken at the end of the pipe.
    end: Option<End>,
    /// Where the reason goes if the transfer fails.
    failure: Arc<OnceLock<(Class, String)>>,
}

impl Transfer {
    pub(super) fn new(piped: Piped, failure: Arc<OnceLock<(Class, String)>>) -> Self {
        Transfer { pipe: piped.pipe, buffer: BytesMut::new(), end: Some(piped.end), failure }
    }
}

impl ChunkSource for Transfer {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.buffer.len() < PIECE / 4 {
            // What was handed out is still read elsewhere; the rest of the piece is too small for a call.
            self.buffer = BytesMut::zeroed(PIECE);
        }
        let read = self.pipe.read(&mut self.buffer)?;
        if read > 0 {
            return Ok(Some(self.buffer.split_to(read).freeze()));
        }
        // The end of the pipe is the end of the layer only if the sender says so.
        match self.end.take().map(End::wait) {
            None | Some(Ok(())) => Ok(None),
            Some(Err(e)) => {
                let message = e.to_string();
                let _ = self.failure.set((e.class(), message.clone()));
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, message))
            }
        }
    }
}

/// A source whose bytes are counted as received.
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

/// A source that ends with an error when it gives more than it should, or the build stops.
pub(in crate::builder) struct Bounded<S> {
    pub(in crate::builder) source: S,
    /// Maximum number of bytes that can still come.
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
        let longer = || io::Error::new(io::ErrorKind::InvalidData, "the tar is longer than it is said to be");
        self.left = self.left.checked_sub(len).ok_or_else(longer)?;
        Ok(chunk)
    }
}

pub(super) enum Message {
    Chunk(Bytes),
    /// All bytes were sent. Without it the channel's end means that the sender gave up.
    End,
}

/// The blocking end of the channel.
pub(super) struct Received(pub(super) mpsc::Receiver<Message>);

impl ChunkSource for Received {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.0.blocking_recv() {
            Some(Message::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Message::End) => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the transfer was given up")),
        }
    }
}
