//! A dm-verity hash tree after an image (Linux, admin-guide/device-mapper/verity.rst; the header is that of
//! cryptsetup).
//!
//! ```text
//! image │ header, padded to a block │ top level (one block) │ … │ digests of the blocks of the image
//! ```
//!
//! sha256 over blocks of 4096 bytes prefixed with a salt of 32 zero bytes. The UUID of the tree is that of
//! the image, so the same image gives the same tree. containerd builds its own images in the same way.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use super::error::{Context, Error};
use super::format::{self, BLOCK};
use larder_model::digest::Digest;
use larder_model::seal;

/// The data for verifying an image block by block as it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verity {
    /// Root hash: sha256 over the top of the tree.
    pub root: [u8; 32],
    /// Offset of the header, bytes. It equals the length of the image without the tree.
    pub offset: u64,
}

impl From<Verity> for seal::Verity {
    fn from(Verity { root, offset }: Verity) -> Self {
        seal::Verity { root_hash: Digest::of_sha256(root), hash_offset: offset }
    }
}

/// A callback that receives pieces of the tree with their offsets.
pub(super) type Put<'p> = dyn FnMut(u64, &[u8]) -> Result<(), Error> + 'p;

const DIGEST: usize = 32;
const SALT: [u8; 32] = [0; 32];

/// Number of digests in a block.
const FAN: u64 = (BLOCK / DIGEST) as u64;

/// Size of one read, bytes.
const CHUNK: usize = 64 * BLOCK;

/// Returns the number of blocks of each level above `blocks` image blocks, lowest level first.
fn levels(blocks: u64) -> Vec<u64> {
    let mut levels = Vec::new();
    let mut below = blocks;
    while below > 1 {
        below = below.div_ceil(FAN);
        levels.push(below);
    }
    levels
}

/// Returns the number of blocks of the tree for an image of `blocks` blocks, including the header.
fn tree_blocks(blocks: u64) -> u64 {
    1 + levels(blocks).iter().sum::<u64>()
}

/// Returns the size of the tree for an image of `blocks` blocks, bytes.
pub(super) fn len(blocks: u64) -> u64 {
    tree_blocks(blocks) * BLOCK as u64
}

fn digest(block: &[u8]) -> [u8; DIGEST] {
    Sha256::new_with_prefix(SALT).chain_update(block).finalize().into()
}

/// One level of the tree that is being filled.
struct Level {
    /// Offset of the next block of this level, bytes.
    at: u64,
    block: Vec<u8>,
}

/// Hashes the first `blocks` blocks of `image`, and passes the header and the tree to `put`, each piece with
/// its offset.
pub(super) fn write(image: &File, blocks: u64, uuid: &[u8; 16], put: &mut Put<'_>) -> Result<Verity, Error> {
    let size = |blocks: u64| blocks * BLOCK as u64;
    put(size(blocks), &header(blocks, uuid))?;
    let counts = levels(blocks);
    let mut at = size(blocks + 1);
    let mut tree: Vec<Level> = Vec::with_capacity(counts.len());
    // The top level comes first.
    for count in counts.iter().rev() {
        tree.push(Level { at, block: Vec::with_capacity(BLOCK) });
        at += size(*count);
    }
    tree.reverse();
    let mut root = [0; DIGEST];
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < size(blocks) {
        let len = usize::try_from(size(blocks) - done).map_or(CHUNK, |left| left.min(CHUNK));
        image.read_exact_at(&mut buffer[..len], done).context("reading the image")?;
        for block in buffer[..len].chunks_exact(BLOCK) {
            add(&mut tree, digest(block), &mut root, put)?;
        }
        done += len as u64;
    }
    for level in 0..tree.len() {
        if !tree[level].block.is_empty() {
            close(&mut tree[level..], &mut root, put)?;
        }
    }
    Ok(Verity { root, offset: size(blocks) })
}

/// Verifies that `image`, a file of `len` bytes, matches its root hash. Reads every block of the image once
/// and compares every block of the tree. The header is not covered by a digest, so it must equal the one that
/// this tree would get.
///
/// # Errors
/// `InvalidData` names the part that differs.
pub fn check(image: &File, len: u64, want: &seal::Verity) -> std::io::Result<()> {
    let differs = |reason: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, reason.to_owned());
    let offset = want.hash_offset;
    let blocks = offset / BLOCK as u64;
    let whole = blocks.checked_add(tree_blocks(blocks)).and_then(|blocks| blocks.checked_mul(BLOCK as u64));
    if !offset.is_multiple_of(BLOCK as u64) || blocks == 0 || whole != Some(len) {
        return Err(differs("its length does not match an image with a hash tree"));
    }
    let mut uuid = [0; 16];
    image.read_exact_at(&mut uuid, offset + 16)?;
    let mut found = vec![0; BLOCK];
    let mut same = true;
    let made = write(image, blocks, &uuid, &mut |at, bytes| {
        let found = &mut found[..bytes.len()];
        image.read_exact_at(found, at).context("reading the hash tree")?;
        same &= found == bytes;
        Ok(())
    });
    let made = made.map_err(std::io::Error::other)?;
    if seal::Verity::from(made) != *want {
        return Err(differs("it does not match the root hash in cache.json"));
    }
    if same { Ok(()) } else { Err(differs("its hash tree does not match its content")) }
}

/// Adds a digest to the lowest of `levels`. Above the top, the digest is the root.
fn add(
    levels: &mut [Level],
    digest: [u8; DIGEST],
    root: &mut [u8; DIGEST],
    put: &mut Put<'_>,
) -> Result<(), Error> {
    let Some(level) = levels.first_mut() else {
        *root = digest;
        return Ok(());
    };
    level.block.extend_from_slice(&digest);
    if level.block.len() == BLOCK { close(levels, root, put) } else { Ok(()) }
}

/// Writes the partial block of the lowest of `levels`.
fn close(levels: &mut [Level], root: &mut [u8; DIGEST], put: &mut Put<'_>) -> Result<(), Error> {
    let Some((level, above)) = levels.split_first_mut() else { return Ok(()) };
    level.block.resize(BLOCK, 0);
    put(level.at, &level.block)?;
    level.at += BLOCK as u64;
    let digest = digest(&level.block);
    level.block.clear();
    add(above, digest, root, put)
}

/// Returns the header (cryptsetup, lib/verity/verity.c).
fn header(blocks: u64, uuid: &[u8; 16]) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = format::Put(&mut header);
    put.bytes(0, b"verity\0\0");
    // Version, and the hash type in which the salt comes first.
    put.bytes(8, &1u32.to_le_bytes());
    put.bytes(12, &1u32.to_le_bytes());
    put.bytes(16, uuid);
    put.bytes(32, b"sha256");
    put.bytes(64, &4096u32.to_le_bytes());
    put.bytes(68, &4096u32.to_le_bytes());
    put.bytes(72, &blocks.to_le_bytes());
    put.bytes(80, &32u16.to_le_bytes());
    put.bytes(88, &SALT);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_meet_in_one_block() {
        assert_eq!(levels(1), [0; 0]);
        assert_eq!(levels(2), [1]);
        assert_eq!(levels(128), [1]);
        assert_eq!(levels(129), [2, 1]);
        assert_eq!(levels(128 * 128 + 1), [129, 2, 1]);
        assert_eq!(len(129), 4 * 4096);
    }
}
