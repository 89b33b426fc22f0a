//! How much a tenant, or a stranger, may ask of the daemon.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most buckets of one limiter. Those beyond share one, so that strangers cannot fill the memory.
const MOST_BUCKETS: usize = 4096;

/// Token buckets, one for each key: `rate` a second, `burst` saved up.
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
    /// `rate` a second, at least one; full buckets to begin with.
    pub(super) fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let (rate, burst) = (f64::from(rate.max(1)), f64::from(burst.max(1)));
        let others = Bucket { tokens: burst, at: now };
        Limiter { rate, burst, buckets: Mutex::new(Buckets { of: HashMap::new(), others }) }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub(super) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let (rate, burst) = (self.rate, self.burst);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = &mut *buckets;
        if buckets.of.len() >= MOST_BUCKETS && !buckets.of.contains_key(key) {
            // A full bucket says nothing that a new one does not.
            buckets.of.retain(|_, bucket| {
                bucket.fill(rate, burst, now);
                bucket.tokens < burst
            });
        }
        let bucket = if buckets.of.len() < MOST_BUCKETS || buckets.of.contains_key(key) {
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

/// Things that a tenant may hold only so many of at once.
#[derive(Debug)]
pub(super) struct Shares<K: Clone + Eq + Hash> {
    most: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

/// One of them; given back on drop.
#[derive(Debug)]
pub(super) struct Share<K: Clone + Eq + Hash> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

fn counts<K>(held: &Mutex<HashMap<K, usize>>) -> MutexGuard<'_, HashMap<K, usize>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// At most `most` for each key.
    pub(super) fn new(most: usize) -> Self {
        Shares { most, held: Arc::default() }
    }

    /// One more; none where the key has all of its.
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
        assert_eq!(limiter.take(&"b", start), Ok(()), "another has a bucket of its own");
        assert!(limiter.take(&"a", after(499)).is_err());
        assert_eq!(limiter.take(&"a", after(500)), Ok(()));
        for _ in 0..3 {
            assert_eq!(limiter.take(&"a", after(60_000)), Ok(()));
        }
        assert!(limiter.take(&"a", after(60_000)).is_err());
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let start = Instant::now();
        let limiter = Limiter::new(1, 2, start);
        for key in 0..3 * MOST_BUCKETS {
            let _ = limiter.take(&key, start);
        }
        assert_eq!(limiter.buckets.lock().unwrap().of.len(), MOST_BUCKETS);
        assert!(limiter.take(&usize::MAX, start).is_err(), "the shared bucket is empty");
        let later = start + Duration::from_secs(60);
        assert_eq!(limiter.take(&usize::MAX, later), Ok(()));
        assert_eq!(limiter.buckets.lock().unwrap().of.len(), 1);
    }

    #[test]
    fn shares_are_given_back() {
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
