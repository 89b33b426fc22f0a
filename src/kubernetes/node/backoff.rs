//! Retry delays that grow, with a random part, so that nodes do not retry at the same time.

use std::time::{Duration, Instant};

use uuid::Uuid;

/// Delay after the first failure.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Maximum delay between retries.
const MAX_DELAY: Duration = Duration::from_secs(120);

/// The consecutive failures of one operation.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Records a failure at `now`.
    pub(super) fn failed(&mut self, now: Instant) {
        let pause = FIRST_DELAY.saturating_mul(1 << self.failures.min(16)).min(MAX_DELAY);
        // From 25 % less to 25 % more.
        let random = u32::from(Uuid::new_v4().as_bytes()[0]);
        self.until = Some(now + pause * 3 / 4 + pause / 2 * random / 255);
        self.failures += 1;
    }

    /// Records a success and resets the delay.
    pub(super) fn succeeded(&mut self) {
        *self = Backoff::default();
    }

    /// Returns the time before which the operation must not be retried. `None` if it can be tried now.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow() {
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
        assert!(backoff.until(now).unwrap() - now <= MAX_DELAY * 5 / 4);
        assert_eq!(backoff.until(now + MAX_DELAY * 2), None);
        backoff.succeeded();
        assert_eq!(backoff.until(now), None);
    }
}
