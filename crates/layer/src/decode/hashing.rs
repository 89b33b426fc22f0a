//! The place of a blob's two hashes: the caller's thread, after a buffer is filled, or another core while the
//! next one is filled.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::hashes::Hashes;
use super::{Error, MIN_BYTES_FOR_THREAD};
use crate::cores::Cores;
use larder_model::digest::{Algorithm, Digest};

/// Maximum number of buffers and chunks queued for the hashing thread. Bounds memory and absorbs short-term
/// differences in speed.
const WAITING: usize = 8;

enum Piece {
    Blob(Bytes),
    Tar(Bytes),
}

pub(super) struct Hashing {
    location: Location,
    /// The available cores; `None` to stay on the caller's thread.
    cores: Option<Arc<Cores>>,
    /// `true` if one hash serves for the blob and the tar.
    one: bool,
    /// Tar bytes hashed so far.
    size: u64,
}

enum Location {
    Disabled,
    CallerThread(Box<Hashes>),
    OwnThread(SyncSender<Piece>, JoinHandle<Hashes>),
}

impl Hashing {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let location = Location::CallerThread(Box::new(Hashes::new(algorithm)));
        Hashing { location, cores: None, one: false, size: 0 }
    }

    /// Creates a `Hashing` that hashes nothing and has no digests.
    pub(super) fn none() -> Self {
        Hashing { location: Location::Disabled, cores: None, one: false, size: 0 }
    }

    /// From now on, hashes on another core as soon as one is idle and there is enough to hash.
    pub(super) fn with_cores(&mut self, cores: Arc<Cores>) {
        self.cores = Some(cores);
    }

    /// Notes that the blob is an uncompressed tar, so that one hash can serve for both if the algorithm is
    /// sha256.
    pub(super) fn set_plain(&mut self) {
        if let Location::CallerThread(hashes) = &mut self.location {
            self.one = hashes.share();
        }
    }

    /// Notes that no more tar bytes follow.
    pub(super) fn end_tar(&mut self) {
        self.one = true;
    }

    #[cfg(test)]
    pub(super) fn is_on_own_thread(&self) -> bool {
        matches!(self.location, Location::OwnThread(..))
    }

    pub(super) fn blob(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.update(Piece::Blob(bytes.clone()))
    }

    pub(super) fn tar(&mut self, bytes: &Bytes) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        if self.one {
            return Ok(());
        }
        self.update(Piece::Tar(bytes.clone()))
    }

    fn update(&mut self, piece: Piece) -> Result<(), Error> {
        if let Location::CallerThread(hashes) = &mut self.location {
            if self.size >= MIN_BYTES_FOR_THREAD
                && self.cores.as_ref().is_some_and(|cores| cores.has_idle())
                && let Some(moved) = moved(hashes)
            {
                self.location = moved;
            } else {
                update(hashes, piece);
                return Ok(());
            }
        }
        match &self.location {
            Location::OwnThread(sender, _) => sender.send(piece).map_err(|_| Error::Failed),
            Location::Disabled => Ok(()),
            Location::CallerThread(_) => Err(Error::Failed),
        }
    }

    /// Returns the digests of the blob and of the tar.
    pub(super) fn finish(self) -> Result<(Digest, Digest), Error> {
        let hashes = match self.location {
            Location::Disabled => return Err(Error::Failed),
            Location::CallerThread(hashes) => *hashes,
            Location::OwnThread(sender, thread) => {
                drop(sender);
                thread.join().map_err(|_| Error::Failed)?
            }
        };
        Ok(hashes.finish())
    }
}

/// Starts a thread that continues with `hashes`; `None` if the system cannot start one.
fn moved(hashes: &Hashes) -> Option<Location> {
    let (sender, receiver) = sync_channel(WAITING);
    let hashes = hashes.clone();
    let thread = thread::Builder::new().name("layer-hash".into()).spawn(move || hash(hashes, &receiver));
    Some(Location::OwnThread(sender, thread.ok()?))
}

fn hash(mut hashes: Hashes, pieces: &Receiver<Piece>) -> Hashes {
    while let Ok(piece) = pieces.recv() {
        update(&mut hashes, piece);
    }
    hashes
}

fn update(hashes: &mut Hashes, piece: Piece) {
    match piece {
        Piece::Blob(bytes) => hashes.blob(bytes),
        Piece::Tar(bytes) => hashes.tar(&bytes),
    }
}
