//! Minimum transfer rate: a very slow layer would block a builder that other builds need.

use std::time::Duration;

/// Minimum number of bytes in a window of time spent waiting for the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes required in each window.
    pub bytes: u64,
    /// Length of the window. The rate is first checked after this much waiting time.
    pub window: Duration,
}

impl MinRate {
    /// Returns a minimum of `bytes` per minute.
    pub fn per_minute(bytes: u64) -> Self {
        MinRate { bytes, window: Duration::from_secs(60) }
    }
}

/// Too few bytes in a window of time. Another source, or the same one later, might be faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "too slow: {bytes} bytes in {} s, the minimum for a layer is {} in {} s",
    waited.as_secs(), least.bytes, least.window.as_secs()
)]
pub struct Slow {
    /// Bytes received in the window.
    pub bytes: u64,
    /// Time spent waiting for them.
    pub waited: Duration,
    /// Minimum rate that was required.
    pub least: MinRate,
}

/// Measures the rate of a blob while one of its connections waits. Only time spent waiting for the network
/// counts, because the disk might be slow.
#[derive(Debug)]
pub(crate) struct RateMonitor {
    least: Option<MinRate>,
    waited: Duration,
    /// Bytes of the blob received before the window.
    before: u64,
}

impl RateMonitor {
    /// Creates a monitor for a blob of which `received` bytes are here. Without `least`, it accepts any rate.
    pub(crate) fn new(least: Option<MinRate>, received: u64) -> Self {
        RateMonitor { least, waited: Duration::ZERO, before: received }
    }

    /// Starts again with another source.
    pub(crate) fn reset(&mut self, received: u64) {
        (self.waited, self.before) = (Duration::ZERO, received);
    }

    /// Adds the time for which a connection waited. `received` is the number of bytes over all connections.
    ///
    /// # Errors
    /// [`Slow`] at the end of a window with too few bytes.
    pub(crate) fn count(&mut self, time: Duration, received: u64) -> Result<(), Slow> {
        let Some(least) = self.least else { return Ok(()) };
        self.waited += time;
        if self.waited < least.window {
            return Ok(());
        }
        let (bytes, waited) = (received.saturating_sub(self.before), self.waited);
        self.reset(received);
        if u128::from(bytes) * least.window.as_nanos() < u128::from(least.bytes) * waited.as_nanos() {
            return Err(Slow { bytes, waited, least });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_must_have_its_bytes() {
        let second = Duration::from_secs(1);
        for (each, slow) in [(10, false), (9, true)] {
            let mut monitor = RateMonitor::new(Some(MinRate::per_minute(600)), 0);
            for n in 1..=180 {
                let counted = monitor.count(second, n * each);
                assert_eq!(counted.is_err(), slow && n % 60 == 0, "{each} a second: second {n}");
            }
        }
        // A fast window is no credit for the next one.
        let mut monitor = RateMonitor::new(Some(MinRate::per_minute(600)), 1_000_000);
        monitor.count(Duration::from_secs(60), 2_000_000).unwrap();
        let slow = monitor.count(Duration::from_secs(90), 2_000_899);
        assert!(matches!(slow, Err(Slow { bytes: 899, .. })));
        monitor.count(Duration::from_secs(90), 2_001_799).unwrap();
        RateMonitor::new(None, 0).count(Duration::from_secs(3600), 0).unwrap();
    }
}
