//! The two hashes of a blob, computed on the caller's thread after a buffer is filled, or on another core
//! while the next one is filled.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::{Error, WORTH};
use crate::cores::Cores;
use larder_model::digest::{Algorithm, Digest, Hasher};

/// Maximum number of buffers and chunks queued for the hashing thread. Bounds memory and absorbs short-term
/// differences in speed.
const WAITING: usize = 8;

#[derive(Clone)]
struct Hashes {
    blob: Hasher,
    /// `None` if the blob is the tar and its digest is sha256 already.
    tar: Option<Hasher>,
}

impl Hashes {
    fn update(&mut self, piece: &Piece) {
        match piece {
            Piece::Blob(bytes) => self.blob.update(bytes),
            Piece::Tar(bytes) => {
                if let Some(tar) = &mut self.tar {
                    tar.update(bytes);
                }
            }
        }
    }
}

enum Piece {
    Blob(Bytes),
    Tar(Bytes),
}

pub(super) struct Hashing {
    place: Place,
    /// The available cores; `None` to stay on the caller's thread.
    cores: Option<Arc<Cores>>,
    /// `true` if one hash serves for the blob and the tar.
    one: bool,
    /// Tar bytes hashed so far.
    size: u64,
}

enum Place {
    Nowhere,
    Here(Box<Hashes>),
    Beside(SyncSender<Piece>, JoinHandle<Hashes>),
}

impl Hashing {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        let hashes = Hashes { blob: Hasher::new(algorithm), tar: Some(Hasher::new(Algorithm::Sha256)) };
        Hashing { place: Place::Here(Box::new(hashes)), cores: None, one: false, size: 0 }
    }

    /// Creates a `Hashing` that hashes nothing and has no digests.
    pub(super) fn none() -> Self {
        Hashing { place: Place::Nowhere, cores: None, one: false, size: 0 }
    }

    /// From now on, hashes on another core as soon as one is idle and there is enough to hash.
    pub(super) fn beside(&mut self, cores: Arc<Cores>) {
        self.cores = Some(cores);
    }

    /// Notes that the blob is an uncompressed tar, so that one hash can serve for both if the algorithm is
    /// sha256.
    pub(super) fn is_plain(&mut self) {
        if let Place::Here(hashes) = &mut self.place
            && matches!(hashes.blob, Hasher::Sha256(_))
        {
            hashes.tar = None;
            self.one = true;
        }
    }

    /// Notes that no more tar bytes follow.
    pub(super) fn is_only_blob(&mut self) {
        self.one = true;
    }

    #[cfg(test)]
    pub(super) fn is_beside(&self) -> bool {
        matches!(self.place, Place::Beside(..))
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
        if let Place::Here(hashes) = &mut self.place {
            if self.size >= WORTH
                && self.cores.as_ref().is_some_and(|cores| cores.outnumber_layers())
                && let Some(moved) = moved(hashes)
            {
                self.place = moved;
            } else {
                hashes.update(&piece);
                return Ok(());
            }
        }
        match &self.place {
            Place::Beside(sender, _) => sender.send(piece).map_err(|_| Error::Failed),
            Place::Nowhere => Ok(()),
            Place::Here(_) => Err(Error::Failed),
        }
    }

    /// Returns the digests of the blob and of the tar.
    pub(super) fn finish(self) -> Result<(Digest, Digest), Error> {
        let Hashes { blob, tar } = match self.place {
            Place::Nowhere => return Err(Error::Failed),
            Place::Here(hashes) => *hashes,
            Place::Beside(sender, thread) => {
                drop(sender);
                thread.join().map_err(|_| Error::Failed)?
            }
        };
        let blob = blob.finish();
        Ok((blob.clone(), tar.map_or(blob, Hasher::finish)))
    }
}

/// Starts a thread that continues with `hashes`; `None` if the system cannot start one.
fn moved(hashes: &Hashes) -> Option<Place> {
    let (sender, receiver) = sync_channel(WAITING);
    let hashes = hashes.clone();
    let thread = thread::Builder::new().name("layer-hash".into()).spawn(move || hash(hashes, &receiver));
    Some(Place::Beside(sender, thread.ok()?))
}

fn hash(mut hashes: Hashes, pieces: &Receiver<Piece>) -> Hashes {
    while let Ok(piece) = pieces.recv() {
        hashes.update(&piece);
    }
    hashes
}
