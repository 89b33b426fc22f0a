//! Advances two states by the same number of blocks: interleaved on x86-64 with the SHA extensions, in turns
//! elsewhere.

use super::{Block, State};
use sha2::block_api::compress256;

#[cfg(target_arch = "x86_64")]
mod x86;

/// Advances each of two states by its blocks. Both have the same number of blocks.
pub(super) type Compress = fn(&mut State, &[Block], &mut State, &[Block]);

/// Returns the fastest function for this processor.
pub(super) fn fastest() -> Compress {
    #[cfg(target_arch = "x86_64")]
    if x86::is_supported() {
        return x86::compress;
    }
    in_turns
}

/// Advances one state after the other, on any processor.
pub(super) fn in_turns(a: &mut State, blocks_a: &[Block], b: &mut State, blocks_b: &[Block]) {
    compress256(a, blocks_a);
    compress256(b, blocks_b);
}
