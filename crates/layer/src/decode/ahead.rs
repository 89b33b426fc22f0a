//! An inflater on its own thread, which runs some buffers ahead of the reader of the tar.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use bytes::Bytes;

use super::inflater::Inflater;
use super::{Decoded, Error};
use larder_model::digest::Digest;

/// Maximum number of buffers queued for the reader. Bounds memory and absorbs short-term differences in
/// speed.
const WAITING: usize = 6;

type Piece = Result<Option<Bytes>, Error>;

/// The reader's handle of the inflater thread.
pub(super) struct Ahead {
    pieces: Receiver<Piece>,
    ended: bool,
    thread: JoinHandle<Result<Decoded, Rest>>,
}

/// Reads the rest of a blob that cannot be decoded, for its digest and size.
type Rest = Box<dyn FnOnce() -> Option<(Digest, u64)> + Send>;

impl Ahead {
    /// Moves the inflater to a new thread; returns it if the system cannot start one.
    pub(super) fn start(inflater: Box<Inflater<'static>>) -> Result<Self, Box<Inflater<'static>>> {
        let (sender, pieces) = sync_channel(WAITING);
        // The closure of a thread that fails to start is dropped, so the inflater is sent separately.
        let (hand_over, handed_over) = sync_channel::<Box<Inflater<'static>>>(1);
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

    /// Returns the next bytes of the tar; `None` at the end of a complete blob.
    pub(super) fn next(&mut self) -> Piece {
        if self.ended {
            return Ok(None);
        }
        let piece = self.pieces.recv().unwrap_or(Err(Error::Failed));
        self.ended = matches!(piece, Ok(None));
        piece
    }

    /// Returns the digests and sizes. Called after the end was reached.
    pub(super) fn finish(self) -> Result<Decoded, Error> {
        match self.thread.join() {
            Ok(Ok(decoded)) => Ok(decoded),
            _ => Err(Error::Failed),
        }
    }

    /// Returns digest and size of the blob, regardless of its content.
    pub(super) fn blob(self) -> Option<(Digest, u64)> {
        drop(self.pieces);
        match self.thread.join().ok()? {
            Ok(decoded) => Some((decoded.blob, decoded.blob_size)),
            Err(rest) => rest(),
        }
    }
}

/// Decodes until the end. Returns `true` if the blob was complete and the reader received all of it.
fn inflate(inflater: &mut Inflater<'_>, pieces: &SyncSender<Piece>) -> bool {
    loop {
        let piece = inflater.next();
        let is_whole = matches!(piece, Ok(None));
        let is_last = !matches!(piece, Ok(Some(_)));
        // The reader closes the channel only after an error of its own, which it reports.
        let is_read = pieces.send(piece).is_ok();
        if !is_read || is_last {
            return is_read && is_whole;
        }
    }
}
