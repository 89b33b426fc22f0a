//! A safe interface to ISA-L, Intel's deflate decoder and encoder in assembly. No crate offers the streaming
//! form of the decoder without losing bytes at the end of an input or of a member (benches/README.md).
//!
//! Only [`Isal::inflate`] and [`GzipEncoder::deflate`] exchange data with C; everything around them is safe.

#![cfg(target_arch = "x86_64")]

mod deflate;

pub use self::deflate::{Deflated, GzipEncoder, MIN_OUTPUT};

use std::mem::MaybeUninit;
use std::{fmt, ptr};

use isal_sys::igzip_lib::{
    ISAL_DEFLATE, ISAL_INVALID_BLOCK, ISAL_INVALID_LOOKBACK, ISAL_INVALID_SYMBOL, inflate_state,
    isal_block_state_ISAL_BLOCK_FINISH as FINISH, isal_inflate, isal_inflate_init, isal_inflate_reset,
};

/// The progress of one call of [`Isal::inflate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflated {
    /// Bytes of the input that were read.
    pub read: usize,
    /// Bytes of the output that were written.
    pub written: usize,
    /// Surplus bytes after the end of the stream; `None` if the stream has not ended.
    pub end: Option<Surplus>,
}

/// Bytes that were read after the end of a stream: the first `len` of `bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Surplus {
    /// The surplus bytes, padded with zeros.
    pub bytes: [u8; 8],
    /// Number of surplus bytes in `bytes`.
    pub len: usize,
}

/// State of a stream that is being inflated: 85 KiB, including its own copy of the window.
pub struct Isal(Box<inflate_state>);

impl fmt::Debug for Isal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Isal").finish_non_exhaustive()
    }
}

impl Default for Isal {
    fn default() -> Self {
        Isal::new()
    }
}

#[expect(unsafe_code, reason = "the pointers in the structure make it not Send")]
// SAFETY: the only pointers in it are `next_in` and `next_out`, which are set and cleared within one call of
// `inflate`. The library has no thread-local state. Of its statics, it writes only the addresses of the
// functions for this processor: every caller writes the same values, one word each.
unsafe impl Send for Isal {}

impl Isal {
    /// Creates the state for a new stream.
    #[must_use]
    pub fn new() -> Self {
        #[expect(unsafe_code, reason = "the structure comes from C and has no constructor in Rust")]
        // SAFETY: it consists of integers, arrays and structures of them, a union of integers, and two raw
        // pointers. Zeros are a valid value of each.
        let mut state = Box::new(unsafe { MaybeUninit::<inflate_state>::zeroed().assume_init() });
        #[expect(unsafe_code, reason = "a call of C")]
        // SAFETY: the pointer is to a whole structure that is not shared; the function only assigns fields of
        // it.
        unsafe {
            isal_inflate_init(&raw mut *state);
        }
        state.crc_flag = ISAL_DEFLATE;
        Isal(state)
    }
}

impl Isal {
    /// Inflates from `input` into `output` until one of them is exhausted or the stream ends. After the end
    /// of a stream, the caller must call [`reset`](Isal::reset) first.
    ///
    /// # Errors
    ///
    /// Returns a message if the input is not a valid deflate stream (RFC 1951).
    pub fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String> {
        let state = &mut *self.0;
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        // The library only reads from `next_in`; the C declaration lacks `const`.
        (state.next_in, state.avail_in) = (input.as_ptr().cast_mut(), given);
        (state.next_out, state.avail_out) = (output.as_mut_ptr(), room);
        #[expect(unsafe_code, reason = "a call of C")]
        // SAFETY: `state` was initialised by isal_inflate_init; since then, only isal_inflate and
        // isal_inflate_reset have changed it, apart from the four fields above. Until the call returns, both
        // slices are borrowed, so `given` bytes at `next_in` are readable and `room` bytes at `next_out` are
        // readable and writable. Both are initialised and do not overlap. The window is stored in `state`, so
        // the next call needs neither slice.
        let status = unsafe { isal_inflate(&raw mut *state) };
        (state.next_in, state.next_out) = (ptr::null_mut(), ptr::null_mut());
        match status {
            0 => {}
            ISAL_INVALID_BLOCK => return Err("an invalid deflate block".into()),
            ISAL_INVALID_SYMBOL => return Err("an invalid deflate symbol".into()),
            ISAL_INVALID_LOOKBACK => return Err("an invalid deflate distance (too far back)".into()),
            other => return Err(format!("damaged data (ISA-L: {other})")),
        }
        let count = |before: u32, left: u32| before.checked_sub(left).map(|n| n as usize);
        let counts = (count(given, state.avail_in), count(room, state.avail_out));
        let (Some(read), Some(written)) = counts else {
            return Err("ISA-L reported more bytes than it was given".into());
        };
        let end = (state.block_state == FINISH).then(|| surplus(state.read_in, state.read_in_length));
        Ok(Inflated { read, written, end })
    }

    /// Prepares the state for another stream.
    pub fn reset(&mut self) {
        #[expect(unsafe_code, reason = "a call of C")]
        // SAFETY: as for isal_inflate_init; `crc_flag` is unchanged.
        unsafe {
            isal_inflate_reset(&raw mut *self.0);
        }
    }
}

/// Returns the whole bytes that are left in `word` at the end of a stream. The library reads eight bytes at a
/// time into `word`, of which `bits` are left. Bits that do not fill a byte belong to the stream (RFC 1951,
/// 3.2.3: a stream ends where it ends); the whole bytes do not.
fn surplus(word: u64, bits: i32) -> Surplus {
    let bits = u32::try_from(bits).unwrap_or(0).min(u64::BITS);
    let bytes = word.checked_shr(bits % 8).unwrap_or(0).to_le_bytes();
    Surplus { bytes, len: (bits / 8) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_bytes_are_surplus() {
        let of = |word, bits| {
            let surplus = surplus(word, bits);
            surplus.bytes[..surplus.len].to_vec()
        };
        assert!(of(0, 0).is_empty());
        assert!(of(0b101, 3).is_empty());
        assert_eq!(of(0x0201 << 3 | 0b101, 19), [1, 2]);
        assert_eq!(of(0x0807_0605_0403_0201, 64), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(of(7, -1).is_empty());
    }
}
