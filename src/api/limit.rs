//! Rate limits and concurrency limits, per tenant or address.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Maximum number of buckets of one limiter. Further keys share one bucket, so that unauthenticated clients
/// cannot fill the memory.
const MAX_BUCKETS: usize = 4096;

/// Token buckets, one per key: `rate` tokens per second, up to `burst`.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    rate: f64,
    burst: f64,
    buckets: Mutex<Buckets<K>>,
}

#[derive(Debug)]
struct Buckets<K> {
    of: HashMap<K, Bucket>,
    others: Bucket,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn fill(&mut self, rate: f64, burst: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(burst);
        self.at = now;
    }
}

impl<K: Clone + Eq + Hash> Limiter<K> {
    /// Creates a limiter of `rate` per second, at least one. Buckets start full.
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let (rate, burst) = (f64::from(rate.max(1)), f64::from(burst.max(1)));
        let others = Bucket { tokens: burst, at: now };
        Limiter { rate, burst, buckets: Mutex::new(Buckets { of: HashMap::new(), others }) }
    }

    /// Takes one token.
    ///
    /// # Errors
    /// Returns the time until the next token.
    pub(super) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let (rate, burst) = (self.rate, self.burst);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = &mut *buckets;
        if buckets.of.len() >= MAX_BUCKETS && !buckets.of.contains_key(key) {
            // A full bucket is equivalent to a new one.
            buckets.of.retain(|_, bucket| {
                bucket.fill(rate, burst, now);
                bucket.tokens < burst
            });
        }
        let bucket = if buckets.of.len() < MAX_BUCKETS || buckets.of.contains_key(key) {
            buckets.of.entry(key.clone()).or_insert(Bucket { tokens: burst, at: now })
        } else {
            &mut buckets.others
        };
        bucket.fill(rate, burst, now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate))
    }
}

/// A concurrency limit per key.
#[derive(Debug)]
pub(super) struct Shares<K: Clone + Eq + Hash> {
    most: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

/// One use of a limited resource. Dropping it releases the use.
#[derive(Debug)]
pub(crate) struct Share<K: Clone + Eq + Hash> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

fn counts<K>(held: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Allows at most `most` concurrent uses per key.
    pub(super) fn new(most: usize) -> Self {
        Shares { most, held: Arc::default() }
    }

    /// Adds one use. `None` if the key has reached its maximum.
    pub(super) fn take(&self, key: &K) -> Option<Share<K>> {
        let mut held = counts(&self.held);
        let count = held.entry(key.clone()).or_insert(0);
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { key: key.clone(), held: Arc::clone(&self.held) })
    }
}

impl<K: Clone + Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut held = counts(&self.held);
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_fills_with_time_up_to_the_burst() {
        let start = Instant::now();
        let after = |ms: u64| start + Duration::from_millis(ms);
        let limiter = Limiter::new(2, 3, start);
        for _ in 0..3 {
            assert_eq!(limiter.take(&"a", start), Ok(()));
        }
        assert_eq!(limiter.take(&"a", start), Err(Duration::from_millis(500)));
        assert_eq!(limiter.take(&"b", start), Ok(()), "each key has its own bucket");
        assert!(limiter.take(&"a", after(499)).is_err());
        assert_eq!(limiter.take(&"a", after(500)), Ok(()));
        for _ in 0..3 {
            assert_eq!(limiter.take(&"a", after(60_000)), Ok(()));
        }
        assert!(limiter.take(&"a", after(60_000)).is_err());
    }

    #[test]
    fn memory_is_bounded_for_many_keys() {
        let start = Instant::now();
        let limiter = Limiter::new(1, 2, start);
        for key in 0..3 * MAX_BUCKETS {
            let _ = limiter.take(&key, start);
        }
        assert_eq!(limiter.buckets.lock().unwrap().of.len(), MAX_BUCKETS);
        assert!(limiter.take(&usize::MAX, start).is_err(), "the shared bucket is empty");
        let later = start + Duration::from_secs(60);
        assert_eq!(limiter.take(&usize::MAX, later), Ok(()));
        assert_eq!(limiter.buckets.lock().unwrap().of.len(), 1);
    }

    #[test]
    fn shares_are_released() {
        let shares = Shares::new(2);
        let first = shares.take(&"a");
        let second = shares.take(&"a");
        assert!(first.is_some() && second.is_some() && shares.take(&"a").is_none());
        assert!(shares.take(&"b").is_some());
        drop(first);
        assert!(shares.take(&"a").is_some());
        drop(second);
        assert!(counts(&shares.held).is_empty());
    }
}
