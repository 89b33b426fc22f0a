//! Progress and cancellation of an export.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Error;

/// State shared between an export and the thread that monitors it.
#[derive(Debug, Default)]
pub struct Monitor {
    total: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Monitor {
    /// Creates a monitor without progress.
    pub fn new() -> Self {
        Monitor::default()
    }

    /// Requests that the export stops; it fails with [`Error::Interrupted`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Returns the bytes done and the total bytes; (0, 0) until the total is known.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that are done.
    ///
    /// # Errors
    /// A stop was requested.
    pub(super) fn advance(&self, bytes: u64) -> Result<(), Error> {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }
}
