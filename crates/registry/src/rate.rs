//! Token bucket over the bytes of all bodies.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Limits all bodies together to a number of bytes per second, with a burst of one second.
#[derive(Debug)]
pub(crate) struct Rate {
    per_second: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

#[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
impl Rate {
    /// Creates a limit of `per_second` bytes; 0 counts as 1.
    pub(crate) fn new(per_second: u64) -> Self {
        let per_second = per_second.max(1) as f64;
        let bucket = Mutex::new(Bucket { tokens: per_second, filled: Instant::now() });
        Rate { per_second, bucket }
    }

    /// Takes `bytes` from the bucket and sleeps until the debt is paid. Debts are paid in the order of calls.
    pub(crate) async fn take(&self, bytes: usize) {
        let debt = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let refill = (now - bucket.filled).as_secs_f64() * self.per_second;
            bucket.tokens = (bucket.tokens + refill).min(self.per_second) - bytes as f64;
            bucket.filled = now;
            -bucket.tokens
        };
        if debt > 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(debt / self.per_second)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_burst_waits() {
        let rate = Rate::new(1_000_000);
        let start = Instant::now();
        rate.take(1_000_000).await;
        assert!(start.elapsed() < Duration::from_millis(100));
        rate.take(200_000).await;
        assert!(start.elapsed() >= Duration::from_millis(150));
    }
}
