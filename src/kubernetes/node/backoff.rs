//! When something is tried again: later each time, and not by all nodes at once.

use std::time::{Duration, Instant};

use uuid::Uuid;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(120);

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// It failed once more.
    pub(super) fn failed(&mut self, now: Instant) {
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        // A quarter less to a quarter more.
        let chance = u32::from(Uuid::new_v4().as_bytes()[0]);
        self.until = Some(now + pause * 3 / 4 + pause / 2 * chance / 255);
        self.failures += 1;
    }

    /// It went well.
    pub(super) fn done(&mut self) {
        *self = Backoff::default();
    }

    /// Until when nothing is to be tried.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_each_time() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.until(now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 120, 120] {
            backoff.failed(now);
            let pause = backoff.until(now).unwrap() - now;
            let want = Duration::from_secs(seconds);
            assert!(want * 3 / 4 <= pause && pause <= want * 5 / 4, "{pause:?} for {want:?}");
        }
        for _ in 0..100 {
            backoff.failed(now);
        }
        assert!(backoff.until(now).unwrap() - now <= LONGEST * 5 / 4);
        assert_eq!(backoff.until(now + LONGEST * 2), None);
        backoff.done();
        assert_eq!(backoff.until(now), None);
    }
}
