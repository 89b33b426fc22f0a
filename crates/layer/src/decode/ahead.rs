//! An inflater on a thread of its own, some buffers ahead of who reads the tar.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use bytes::Bytes;

use super::inflater::Inflater;
use super::{ChunkSource, Decoded, Error};
use larder_model::digest::Digest;

/// Buffers that wait for the reader: bounds memory, and takes up what the two differ in by the moment.
const WAITING: usize = 6;

type Piece = Result<Option<Bytes>, Error>;

/// The inflater's thread, seen from the reader.
pub(super) struct Ahead {
    pieces: Receiver<Piece>,
    ended: bool,
    thread: JoinHandle<Result<Decoded, Rest>>,
}

/// Reads what is left of a blob that cannot be decoded, for its digest and size.
type Rest = Box<dyn FnOnce() -> Option<(Digest, u64)> + Send>;

impl Ahead {
    /// Hands the inflater to a thread; gives it back where the system has none left.
    pub(super) fn start<S: ChunkSource + Send + 'static>(
        inflater: Box<Inflater<S>>,
    ) -> Result<Self, Box<Inflater<S>>> {
        let (sender, pieces) = sync_channel(WAITING);
        // A thread that does not start would take with it what it was started with.
        let (hand_over, handed_over) = sync_channel::<Box<Inflater<S>>>(1);
        let work = move || {
            let nothing = || -> Rest { Box::new(|| None) };
            let mut inflater = handed_over.recv().map_err(|_| nothing())?;
            match inflate(&mut inflater, &sender) {
                true => inflater.finish().map_err(|_| nothing()),
                false => Err(Box::new(move || inflater.blob()) as Rest),
            }
        };
        match Builder::new().name("layer-inflate".into()).spawn(work) {
            Ok(thread) => match hand_over.send(inflater) {
                Ok(()) => Ok(Ahead { pieces, ended: false, thread }),
                Err(refused) => Err(refused.0),
            },
            Err(_) => Err(inflater),
        }
    }

    /// The next bytes of the tar; `None` at the end of a blob that is whole.
    pub(super) fn next(&mut self) -> Piece {
        if self.ended {
            return Ok(None);
        }
        let piece = self.pieces.recv().unwrap_or(Err(Error::Failed));
        self.ended = matches!(piece, Ok(None));
        piece
    }

    /// What was read. Called after the end was.
    pub(super) fn finish(self) -> Result<Decoded, Error> {
        match self.thread.join() {
            Ok(Ok(decoded)) => Ok(decoded),
            _ => Err(Error::Failed),
        }
    }

    /// Digest and size of the blob, whatever is in it.
    pub(super) fn blob(self) -> Option<(Digest, u64)> {
        drop(self.pieces);
        match self.thread.join().ok()? {
            Ok(decoded) => Some((decoded.blob, decoded.blob_size)),
            Err(rest) => rest(),
        }
    }
}

/// Whether the blob was whole, and the reader had all of it.
fn inflate<S: ChunkSource>(inflater: &mut Inflater<S>, pieces: &SyncSender<Piece>) -> bool {
    loop {
        let piece = inflater.next();
        let is_whole = matches!(piece, Ok(None));
        let is_last = !matches!(piece, Ok(Some(_)));
        // A reader that is gone has failed, and tells why itself.
        let is_read = pieces.send(piece).is_ok();
        if !is_read || is_last {
            return is_read && is_whole;
        }
    }
}
