//! How far an export is, and asking it to stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Error;

/// Shared between who exports and who watches.
#[derive(Debug, Default)]
pub struct Monitor {
    total: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Monitor {
    /// Nothing done yet.
    pub fn new() -> Self {
        Monitor::default()
    }

    /// Asks the export to stop; it fails with [`Error::Interrupted`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Bytes done, and bytes in all; 0 of 0 before that is known.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that are done.
    pub(super) fn advance(&self, bytes: u64) -> Result<(), Error> {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
