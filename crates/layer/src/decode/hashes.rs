//! The hashes of a blob and of its tar. Two sha256 hashes are computed together, which takes less time than
//! one after the other: the blob's bytes wait for the tar bytes that they decompress to.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use larder_sha256::{Sha256, update_both};

use super::pool::BUFFER;
use larder_model::digest::{Algorithm, Digest, Hasher};

/// Maximum number of blob bytes that wait for tar bytes. A buffer of tar usually comes from fewer, so they
/// are still in the core's cache; this also bounds the memory for a blob that decompresses to little.
const MAX_WAITING: usize = 2 * BUFFER;

#[derive(Clone)]
pub(super) enum Hashes {
    /// sha256 of both, computed together.
    Both(Both),
    /// The blob is the tar.
    One(Sha256),
    /// The blob's digest is not sha256.
    Each { blob: Hasher, tar: Sha256 },
}

/// A sha256 hash of the blob and one of the tar.
#[derive(Clone, Default)]
pub(super) struct Both {
    blob: Sha256,
    tar: Sha256,
    /// Bytes of the blob that are not in its hash yet.
    waiting: VecDeque<Bytes>,
    /// Number of bytes in `waiting`.
    waiting_len: usize,
}

impl Hashes {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hashes::Both(Both::default()),
            Algorithm::Sha512 => Hashes::Each { blob: Hasher::new(algorithm), tar: Sha256::new() },
        }
    }

    /// Uses one hash for the blob and the tar, which are the same bytes. Returns `false` if the algorithms
    /// differ. Called before the first tar bytes.
    pub(super) fn share(&mut self) -> bool {
        match self {
            Hashes::Both(both) => {
                both.hash_waiting(0);
                *self = Hashes::One(both.blob.clone());
                true
            }
            Hashes::One(_) => true,
            Hashes::Each { .. } => false,
        }
    }

    /// Adds the next bytes of the blob.
    pub(super) fn blob(&mut self, bytes: Bytes) {
        match self {
            Hashes::Both(both) => both.blob(bytes),
            Hashes::One(hash) => hash.update(&bytes),
            Hashes::Each { blob, .. } => blob.update(&bytes),
        }
    }

    /// Adds the next bytes of the tar, except to a hash that serves for both.
    pub(super) fn tar(&mut self, bytes: &[u8]) {
        match self {
            Hashes::Both(both) => both.tar(bytes),
            Hashes::One(_) => {}
            Hashes::Each { tar, .. } => tar.update(bytes),
        }
    }

    /// Returns the digests of the blob and of the tar.
    pub(super) fn finish(self) -> (Digest, Digest) {
        match self {
            Hashes::Both(mut both) => {
                both.hash_waiting(0);
                (both.blob.finish(), both.tar.finish())
            }
            Hashes::One(hash) => {
                let digest = hash.finish();
                (digest.clone(), digest)
            }
            Hashes::Each { blob, tar } => (blob.finish(), tar.finish()),
        }
    }
}

impl Both {
    fn blob(&mut self, bytes: Bytes) {
        self.waiting_len += bytes.len();
        self.waiting.push_back(bytes);
        self.hash_waiting(MAX_WAITING);
    }

    fn tar(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some(blob) = self.take_waiting(bytes.len()) else {
                self.tar.update(bytes);
                return;
            };
            // With the last piece of the blob, one call takes all of the tar.
            let tar = if self.waiting.is_empty() { bytes.len() } else { blob.len() };
            let (now, later) = bytes.split_at(tar);
            update_both(&mut self.blob, &blob, &mut self.tar, now);
            bytes = later;
        }
    }

    /// Hashes the oldest bytes of the blob alone until at most `keep` bytes wait.
    fn hash_waiting(&mut self, keep: usize) {
        while self.waiting_len > keep {
            let Some(bytes) = self.take_waiting(self.waiting_len - keep) else { return };
            self.blob.update(&bytes);
        }
    }

    /// Removes the oldest bytes that wait, at most `max` of them.
    fn take_waiting(&mut self, max: usize) -> Option<Bytes> {
        let first = self.waiting.front_mut()?;
        let bytes = first.split_to(max.min(first.len()));
        self.waiting_len -= bytes.len();
        if !first.has_remaining() {
            self.waiting.pop_front();
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_is_in_its_hash(
            pieces in prop::collection::vec((any::<bool>(), 0usize..MAX_WAITING), 0..12),
            sha512 in any::<bool>(),
        ) {
            let algorithm = if sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 };
            let mut hashes = Hashes::new(algorithm);
            let (mut blob, mut tar) = (Vec::new(), Vec::new());
            for (at, (is_blob, length)) in pieces.into_iter().enumerate() {
                let bytes: Vec<u8> = (0..length).map(|i| (i * (at + 3)).to_le_bytes()[0]).collect();
                if is_blob {
                    blob.extend_from_slice(&bytes);
                    hashes.blob(bytes.into());
                } else {
                    tar.extend_from_slice(&bytes);
                    hashes.tar(&bytes);
                }
                if let Hashes::Both(both) = &hashes {
                    prop_assert!(both.waiting_len <= MAX_WAITING);
                    prop_assert_eq!(both.waiting_len, both.waiting.iter().map(Bytes::len).sum::<usize>());
                }
            }
            let want = (Hasher::digest_of(algorithm, &blob), Digest::sha256(&tar));
            prop_assert_eq!(hashes.finish(), want);
        }
    }

    #[test]
    fn one_hash_for_a_plain_tar() {
        for first in [0, 10, 3 * MAX_WAITING] {
            let tar = vec![7; first + 100];
            let mut hashes = Hashes::new(Algorithm::Sha256);
            hashes.blob(tar[..first].to_vec().into());
            assert!(hashes.share() && hashes.share());
            hashes.tar(&tar[..first]);
            hashes.blob(tar[first..].to_vec().into());
            hashes.tar(&tar[first..]);
            let want = Digest::sha256(&tar);
            assert_eq!(hashes.finish(), (want.clone(), want));
        }
        assert!(!Hashes::new(Algorithm::Sha512).share());
    }
}
