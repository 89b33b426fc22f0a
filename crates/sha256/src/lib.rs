//! SHA-256 (FIPS 180-4) of two streams at once on one core.
//!
//! A round of SHA-256 waits for the one before it, so one stream leaves half of the processor's SHA unit
//! unused. [`update_both`] takes the rounds of two streams in turns. On processors without the SHA extensions
//! of x86-64 it hashes one stream after the other.

mod pair;

use std::fmt;

use larder_model::digest::Digest;
use sha2::block_api::compress256;

use self::pair::Compress;

/// Size of a block, bytes (FIPS 180-4, 5.2.1).
const BLOCK: usize = 64;

/// Length of the message in the last block, bytes (FIPS 180-4, 5.1.1).
const LENGTH: usize = 8;

/// Initial state (FIPS 180-4, 5.3.3).
const INITIAL: State =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

type State = [u32; 8];
type Block = [u8; BLOCK];

/// An incremental SHA-256 hash, which two streams can advance together.
#[derive(Clone)]
pub struct Sha256 {
    state: State,
    /// The first bytes of a block that is not complete.
    partial: Block,
    /// Number of bytes in `partial`, less than a block.
    filled: usize,
    /// Complete blocks so far.
    blocks: u64,
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sha256").finish_non_exhaustive()
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Sha256::new()
    }
}

impl Sha256 {
    /// Creates a hash of no bytes.
    #[must_use]
    pub fn new() -> Self {
        Sha256 { state: INITIAL, partial: [0; BLOCK], filled: 0, blocks: 0 }
    }

    /// Adds the next bytes to the hash.
    pub fn update(&mut self, bytes: &[u8]) {
        let (blocks, tail) = self.complete_block(bytes).as_chunks();
        self.compress(blocks);
        self.keep(tail);
    }

    /// Returns the digest of all bytes added.
    #[must_use]
    pub fn finish(mut self) -> Digest {
        let bytes = self.blocks.wrapping_mul(BLOCK as u64).wrapping_add(self.filled as u64);
        let bits = bytes.wrapping_mul(8).to_be_bytes();
        let mut last = [[0; BLOCK]; 2];
        last[0][..self.filled].copy_from_slice(&self.partial[..self.filled]);
        last[0][self.filled] = 0x80;
        let count = if self.filled + 1 + LENGTH <= BLOCK { 1 } else { 2 };
        last[count - 1][BLOCK - LENGTH..].copy_from_slice(&bits);
        compress256(&mut self.state, &last[..count]);
        let mut hash = [0; 32];
        for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        Digest::of_sha256(hash)
    }

    fn compress(&mut self, blocks: &[Block]) {
        if !blocks.is_empty() {
            compress256(&mut self.state, blocks);
            self.blocks = self.blocks.wrapping_add(blocks.len() as u64);
        }
    }

    /// Hashes the partial block if `bytes` complete it. Returns the bytes that follow; they are empty or
    /// follow a complete block.
    fn complete_block<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.filled == 0 {
            return bytes;
        }
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
        self.keep(now);
        if self.filled == BLOCK {
            self.filled = 0;
            let block = self.partial;
            self.compress(&[block]);
        }
        later
    }

    /// Appends `bytes` to the partial block, which has room for them.
    fn keep(&mut self, bytes: &[u8]) {
        self.partial[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

/// Adds `bytes_a` to `a` and `bytes_b` to `b`. The bytes that both have are hashed together, the surplus of
/// the longer one alone.
pub fn update_both(a: &mut Sha256, bytes_a: &[u8], b: &mut Sha256, bytes_b: &[u8]) {
    update_both_by(pair::fastest(), a, bytes_a, b, bytes_b);
}

fn update_both_by(compress: Compress, a: &mut Sha256, bytes_a: &[u8], b: &mut Sha256, bytes_b: &[u8]) {
    let (blocks_a, tail_a) = a.complete_block(bytes_a).as_chunks();
    let (blocks_b, tail_b) = b.complete_block(bytes_b).as_chunks();
    let common = blocks_a.len().min(blocks_b.len());
    let (both_a, only_a) = blocks_a.split_at(common);
    let (both_b, only_b) = blocks_b.split_at(common);
    if common > 0 {
        compress(&mut a.state, both_a, &mut b.state, both_b);
        a.blocks = a.blocks.wrapping_add(common as u64);
        b.blocks = b.blocks.wrapping_add(common as u64);
    }
    a.compress(only_a);
    b.compress(only_b);
    a.keep(tail_a);
    b.keep(tail_b);
}

#[cfg(test)]
mod tests;
