//! Slow connections: the rate of each connection is compared with the rates of its peers, the other
//! connections to the same host.
//!
//! Large registries serve some connections at a small fraction of the rate of others. Such a connection never
//! stalls, so only a comparison detects it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Duration of a measurement, unless the host responds more slowly than half of it.
const WINDOW: Duration = Duration::from_millis(100);
const MAX_WINDOW: Duration = Duration::from_secs(2);
/// Number of measurements that a host keeps.
const KEPT: usize = 32;
/// Minimum number of measurements for a comparison.
const ENOUGH: usize = 3;
/// A connection is slow if it has less than the median divided by this number.
const SLOWER: f64 = 4.0;
/// A connection that gains at least this factor from one window to the next is still speeding up (TCP slow
/// start).
const GROWTH: f64 = 1.5;
/// Minimum share of a window that must be spent waiting for the network. With less, the disk or the
/// processor determines the rate.
const BOUND: f64 = 0.8;
/// Minimum size of a transfer that is measured although it ends before its window, in bytes.
const MEASURABLE: u64 = 256 << 10;

/// Rates of the connections to one host, in bytes per second.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<Rates>);

#[derive(Debug, Default)]
struct Rates {
    /// Latest rate of each transfer. A slow transfer that takes long counts no more than a fast one.
    recent: VecDeque<(Transfer, f64)>,
    /// Number of transfers so far.
    transfers: u64,
    /// Highest median so far.
    best: Option<f64>,
}

/// Number of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transfer(u64);

impl Peers {
    /// Adds a rate. Returns the transfer to which it belongs, by default a new one.
    fn add(&self, rate: f64, transfer: Option<Transfer>) -> Transfer {
        let mut rates = self.lock();
        let transfer = transfer.unwrap_or(Transfer(rates.transfers));
        match rates.recent.iter_mut().find(|(other, _)| *other == transfer) {
            Some((_, latest)) => *latest = rate,
            None => {
                if rates.recent.len() == KEPT {
                    rates.recent.pop_front();
                }
                rates.recent.push_back((transfer, rate));
                rates.transfers = rates.transfers.max(transfer.0 + 1);
            }
        }
        if let Some(median) = rates.median() {
            rates.best = Some(rates.best.map_or(median, |best| best.max(median)));
        }
        transfer
    }

    /// Returns the median of the recent rates, if there are enough.
    pub(crate) fn median(&self) -> Option<f64> {
        self.lock().median()
    }

    /// Returns the highest median so far. A host that has become slow is slow by this measure.
    pub(crate) fn best(&self) -> Option<f64> {
        self.lock().best
    }

    fn lock(&self) -> MutexGuard<'_, Rates> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rates {
    fn median(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.recent.iter().map(|(_, rate)| *rate).collect();
        rates.sort_unstable_by(f64::total_cmp);
        (rates.len() >= ENOUGH).then(|| rates[rates.len() / 2])
    }
}

/// The rates with which a connection is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Comparison<'a> {
    /// The connections to the same host.
    pub(crate) peers: &'a Peers,
    /// `true` if another host has the same content.
    pub(crate) has_alternative: bool,
}

/// A connection is much slower than its peers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Straggling {
    /// Rate of the connection, bytes per second.
    pub(crate) rate: f64,
    /// Median rate of its peers, bytes per second.
    pub(crate) median: f64,
}

/// The measurement of one connection.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    started: Instant,
    waited: Duration,
    bytes: u64,
    /// Rate in the previous window, if the network determined it.
    previous: Option<f64>,
    /// `true` if the consumer can delay reading, so that only the wait for bytes shows the rate.
    is_delayed: bool,
    transfer: Option<Transfer>,
}

impl Pace {
    /// Creates the measurement of a connection whose response took `latency` and starts now.
    pub(crate) fn new(latency: Duration, is_delayed: bool, now: Instant) -> Self {
        let window = latency.saturating_mul(2).clamp(WINDOW, MAX_WINDOW);
        Pace {
            window,
            started: now,
            waited: Duration::ZERO,
            bytes: 0,
            previous: None,
            is_delayed,
            transfer: None,
        }
    }

    /// Returns the time until the window ends.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        (self.started + self.window).saturating_duration_since(now)
    }

    /// Adds `bytes`, for which the network took `time`. Afterwards `left` bytes are missing.
    ///
    /// # Errors
    /// [`Straggling`] after two slow windows, if another connection is expected to end sooner.
    pub(crate) fn count(
        &mut self,
        now: Instant,
        Comparison { peers, has_alternative }: Comparison<'_>,
        time: Duration,
        bytes: usize,
        left: u64,
    ) -> Result<(), Straggling> {
        self.waited += time;
        self.bytes += bytes as u64;
        let elapsed = now.saturating_duration_since(self.started);
        let is_measured = left == 0 && self.bytes >= MEASURABLE;
        if elapsed < self.window && !is_measured {
            return Ok(());
        }
        let waited = if self.is_delayed { self.waited } else { elapsed }.as_secs_f64();
        let is_bound = waited >= BOUND * elapsed.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
        let (rate, left) = (self.bytes as f64 / waited.max(1e-6), left as f64);
        (self.started, self.waited, self.bytes) = (now, Duration::ZERO, 0);
        if !is_bound {
            self.previous = None;
            return Ok(());
        }
        let median = if has_alternative { peers.best() } else { peers.median() };
        self.transfer = Some(peers.add(rate, self.transfer));
        let (Some(median), Some(previous)) = (median, self.previous.replace(rate)) else { return Ok(()) };
        let is_slow = previous.max(rate) * SLOWER < median && rate <= previous * GROWTH;
        let replaced = 2.0 * self.window.as_secs_f64() + left / median;
        let is_worth_it = left / rate.max(1.0) > replaced;
        if is_slow && is_worth_it { Err(Straggling { rate, median }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1_000_000;
    const LEFT: u64 = 100_000_000;

    fn peers(rates: &[f64]) -> Peers {
        let peers = Peers::default();
        for rate in rates {
            peers.add(*rate, None);
        }
        peers
    }

    /// Receives bytes in windows of which the whole time was spent waiting. Returns the number of windows
    /// until the connection is slow.
    fn windows(peers: &Peers, each: &[usize], left: u64) -> Option<usize> {
        let with = Comparison { peers, has_alternative: false };
        let mut now = Instant::now();
        let mut pace = Pace::new(Duration::ZERO, true, now);
        for (at, bytes) in each.iter().enumerate() {
            now += WINDOW;
            if pace.count(now, with, WINDOW, *bytes, left).is_err() {
                return Some(at + 1);
            }
        }
        None
    }

    #[test]
    fn a_slow_connection_is_found_after_two_windows() {
        let fast = [200e6, 180e6, 220e6];
        // 0.1 MB in 0.1 s: 1 MB/s.
        assert_eq!(windows(&peers(&fast), &[MB / 10; 9], LEFT), Some(2));
        assert_eq!(windows(&peers(&fast), &[0; 9], LEFT), Some(2));
        // More than a quarter of the median is not slow.
        assert_eq!(windows(&peers(&fast), &[6 * MB; 9], LEFT), None);
        // Without peers there is no comparison, nor if all are slow.
        assert_eq!(windows(&peers(&fast[..1]), &[MB / 10; 9], LEFT), None);
        assert_eq!(windows(&peers(&[1e6, 2e6, 1e6]), &[MB / 10; 9], LEFT), None);
        // Few bytes are missing: a new connection would not be faster.
        assert_eq!(windows(&peers(&fast), &[MB / 10; 9], 150_000), None);
    }

    #[test]
    fn slow_start_is_not_slow() {
        let fast = [60e6; 10];
        let doubling = [20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000, 6 * MB];
        assert_eq!(windows(&peers(&fast), &doubling, LEFT), None);
        let stuck = [20_000, 40_000, 80_000, 90_000];
        assert_eq!(windows(&peers(&fast), &stuck, LEFT), Some(4));
        // A host that responds in 300 ms is measured in windows of 600 ms.
        let now = Instant::now();
        assert_eq!(Pace::new(Duration::from_millis(300), true, now).rest(now), Duration::from_millis(600));
    }

    #[test]
    fn a_slow_consumer_is_not_a_slow_connection() {
        let (peers, mut now) = (peers(&[200e6; 5]), Instant::now());
        let with = Comparison { peers: &peers, has_alternative: true };
        let mut pace = Pace::new(Duration::ZERO, true, now);
        for _ in 0..9 {
            now += WINDOW;
            pace.count(now, with, WINDOW / 2, MB / 10, LEFT).unwrap();
        }
        assert_eq!(peers.median(), Some(200e6), "its rates are not measured");
    }

    #[test]
    fn the_median_follows_a_host_that_becomes_slow() {
        let peers = peers(&[200e6; KEPT]);
        let mut replaced = 0;
        while windows(&peers, &[MB / 10; 2], LEFT).is_some() {
            replaced += 1;
            assert!(replaced < KEPT, "the replacements end");
        }
        assert!(replaced <= KEPT / 2, "{replaced}");
    }
}
