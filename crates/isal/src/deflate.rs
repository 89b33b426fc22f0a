use std::mem::MaybeUninit;
use std::{fmt, ptr};

use isal_sys::igzip_lib::{
    COMP_OK, IGZIP_GZIP, ISAL_DEF_LVL1_SMALL, isal_deflate, isal_deflate_init,
    isal_zstate_state_ZSTATE_END as END, isal_zstream,
};

/// Minimum size of an output buffer, bytes. The library writes eight bytes at a time and the trailer at once.
pub const MIN_OUTPUT: usize = 64;

#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const GZIP: u16 = IGZIP_GZIP as u16;

/// The progress of one call of [`GzipEncoder::deflate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflated {
    /// Bytes of the input that were read. The encoder keeps what it has not compressed yet.
    pub read: usize,
    /// Bytes of the output that were written.
    pub written: usize,
    /// `true` if the trailer was written completely.
    pub ended: bool,
}

/// A stream that is being compressed to one gzip member (RFC 1952), without a name or a time.
///
/// It uses level 1 of the library: dynamic Huffman codes and one match candidate. On one
/// processor, the output depends only on the input and its cuts into calls.
pub struct GzipEncoder {
    stream: Box<isal_zstream>,
    /// Tables and symbols of the current block. Larger items than any type in it needs for its alignment.
    level_buffer: Box<[u128]>,
}

impl fmt::Debug for GzipEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzipEncoder").finish_non_exhaustive()
    }
}

impl Default for GzipEncoder {
    fn default() -> Self {
        GzipEncoder::new()
    }
}

#[expect(unsafe_code, reason = "the pointers in the structure make it not Send")]
// SAFETY: `next_in` and `next_out` are set and cleared within one call of `deflate`, and `bitbuf` is set to
// the output at the start of each. So is `level_buf`, and the pointers in `level_buffer` are to itself, on
// the heap. `hufftables` points to a constant of the library. The library has no thread-local state. Of its
// statics, it writes only the addresses of the functions for this processor: every caller writes the same
// values, one word each.
unsafe impl Send for GzipEncoder {}

impl GzipEncoder {
    /// Creates the state for a new stream: 170 KiB.
    #[must_use]
    pub fn new() -> Self {
        #[expect(unsafe_code, reason = "the structure comes from C and has no constructor in Rust")]
        // SAFETY: it consists of integers, arrays and structures of them, an enumeration that is an integer
        // in Rust, and raw pointers. Zeros are a valid value of each.
        let mut stream = Box::new(unsafe { MaybeUninit::<isal_zstream>::zeroed().assume_init() });
        #[expect(unsafe_code, reason = "a call of C")]
        // SAFETY: the pointer is to a whole structure that is not shared; the function only assigns fields of
        // it.
        unsafe {
            isal_deflate_init(&raw mut *stream);
        }
        let level_buffer = vec![0; (ISAL_DEF_LVL1_SMALL as usize).div_ceil(size_of::<u128>())];
        stream.level = 1;
        stream.level_buf_size = ISAL_DEF_LVL1_SMALL;
        stream.gzip_flag = GZIP;
        GzipEncoder { stream, level_buffer: level_buffer.into() }
    }

    /// Compresses from `input` into `output`, which has at least [`MIN_OUTPUT`] bytes, until one of them is
    /// exhausted. With `last`, no input follows; the caller repeats the call with the rest of the input until
    /// the stream has ended.
    ///
    /// # Errors
    ///
    /// Returns a message if the library makes no progress or refuses the call, which is an internal error.
    pub fn deflate(&mut self, input: &[u8], output: &mut [u8], last: bool) -> Result<Deflated, String> {
        let stream = &mut *self.stream;
        if stream.internal_state.state == END {
            return Err("the gzip stream has ended".into());
        }
        let given = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let room = u32::try_from(output.len()).unwrap_or(u32::MAX);
        // The library only reads from `next_in`; the C declaration lacks `const`.
        (stream.next_in, stream.avail_in) = (input.as_ptr().cast_mut(), given);
        (stream.next_out, stream.avail_out) = (output.as_mut_ptr(), room);
        stream.level_buf = self.level_buffer.as_mut_ptr().cast();
        stream.end_of_stream = u16::from(last && given as usize == input.len());
        #[expect(unsafe_code, reason = "a call of C")]
        // SAFETY: `stream` was initialised by isal_deflate_init; since then, only isal_deflate has changed
        // it, apart from the fields above and those that `new` sets. Until the call returns, both slices are
        // borrowed, so `given` bytes at `next_in` are readable and `room` bytes at `next_out` are readable
        // and writable. Both are initialised and do not overlap. The library copies the history and the rest
        // of the input into `stream`, so the next call needs neither slice. `level_buf` has the stated size,
        // is aligned for every type, is used by nothing else, and is at the same address in every call.
        let status = unsafe { isal_deflate(&raw mut *stream) };
        (stream.next_in, stream.next_out) = (ptr::null_mut(), ptr::null_mut());
        stream.level_buf = ptr::null_mut();
        if u32::try_from(status) != Ok(COMP_OK) {
            return Err(format!("ISA-L cannot compress: {status}"));
        }
        let count = |before: u32, left: u32| before.checked_sub(left).map(|n| n as usize);
        let (Some(read), Some(written)) = (count(given, stream.avail_in), count(room, stream.avail_out))
        else {
            return Err("ISA-L reported more bytes than it was given".into());
        };
        let ended = stream.internal_state.state == END;
        if read == 0 && written == 0 && !ended && (last || !input.is_empty()) {
            return Err("ISA-L makes no progress".into());
        }
        Ok(Deflated { read, written, ended })
    }
}
