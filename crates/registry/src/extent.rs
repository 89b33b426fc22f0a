//! The part of a blob that one fetch still has to deliver. Its consumer can move the end while bytes arrive.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Offset of the next byte, and of the end.
#[derive(Debug)]
pub(crate) struct Extent(Mutex<(u64, u64)>);

impl Extent {
    pub(crate) fn new(at: u64, end: u64) -> Arc<Self> {
        Arc::new(Extent(Mutex::new((at, end))))
    }

    /// Returns the offset of the next byte, and the end.
    pub(crate) fn get(&self) -> (u64, u64) {
        *self.lock()
    }

    /// Takes at most `bytes` from the start, and returns the number.
    pub(crate) fn take(&self, bytes: u64) -> u64 {
        let mut range = self.lock();
        let taken = bytes.min(range.1.saturating_sub(range.0));
        range.0 += taken;
        taken
    }

    /// Moves the end to `ahead` bytes after the next one, and returns it. `None` if the end is closer.
    pub(crate) fn shorten(&self, ahead: u64) -> Option<u64> {
        let mut range = self.lock();
        let end = range.0.saturating_add(ahead);
        if end >= range.1 {
            return None;
        }
        range.1 = end;
        Some(end)
    }

    /// Moves the end to `end`. Returns `false` if all bytes before the present end were taken: the fetch is
    /// over.
    pub(crate) fn extend(&self, end: u64) -> bool {
        let mut range = self.lock();
        let is_open = range.0 < range.1;
        if is_open {
            range.1 = end;
        }
        is_open
    }

    fn lock(&self) -> MutexGuard<'_, (u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_moves_only_while_bytes_are_missing() {
        let extent = Extent::new(10, 100);
        assert_eq!(extent.take(15), 15);
        assert_eq!(extent.shorten(75), None);
        assert_eq!(extent.shorten(20), Some(45));
        assert!(extent.extend(50));
        assert_eq!((extent.take(40), extent.take(1)), (25, 0));
        assert_eq!(extent.get(), (50, 50));
        assert!(!extent.extend(100));
        assert_eq!(extent.shorten(0), None);
    }
}
