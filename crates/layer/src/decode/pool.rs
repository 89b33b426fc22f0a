//! A pool of buffers that are reused when all their readers are done.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Size of a buffer of tar bytes: small enough to stay in L2 between decompressing, hashing and writing.
pub(super) const BUFFER: usize = 256 << 10;

/// One buffer more than are being read at the same time. The queues of the readers bound their number
/// (`WAITING` in `ahead` and `hashing`).
#[derive(Default)]
pub(super) struct Pool(VecDeque<Bytes>);

impl Pool {
    /// Returns a buffer of [`BUFFER`] bytes with arbitrary content.
    pub(super) fn take(&mut self) -> BytesMut {
        let free = self.0.iter().position(Bytes::is_unique).and_then(|at| self.0.swap_remove_back(at));
        free.and_then(|buffer| buffer.try_into_mut().ok()).unwrap_or_else(|| BytesMut::zeroed(BUFFER))
    }

    /// Keeps a buffer for reuse once no reader refers to it.
    pub(super) fn lend(&mut self, buffer: Bytes) {
        self.0.push_back(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_read_is_left_alone() {
        let mut pool = Pool::default();
        let mut first = pool.take();
        first[0] = 7;
        let first = first.freeze();
        let read = first.slice(..10);
        pool.lend(first);
        let second = pool.take();
        assert_eq!((second[0], read[0], second.len()), (0, 7, BUFFER));
        pool.lend(second.freeze());
        drop(read);
        assert_eq!([pool.take().len(), pool.take().len()], [BUFFER; 2]);
        assert!(pool.0.is_empty());
    }
}
