//! The lock of a volume, which one build holds at a time.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::layout;
use larder_sys::Dir;
use larder_sys::lock::Lock;

/// Maximum time for the processes of a killed build to exit.
const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Locks a volume, or the directory of a disk. Returns `None` if another build holds the lock. Waits a moment
/// for the processes of a build that was just killed.
///
/// # Errors
/// Those of open(2) and flock(2).
pub(super) fn lock(larder: &Dir) -> io::Result<Option<Lock>> {
    let begun = Instant::now();
    loop {
        match Lock::try_exclusive(larder, layout::LOCK)? {
            None if begun.elapsed() < EXIT_GRACE => sleep(Duration::from_millis(20)),
            lock => return Ok(lock),
        }
    }
}
