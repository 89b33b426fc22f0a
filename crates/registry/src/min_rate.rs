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

    /// Returns the share of one of `parallel` streams.
    fn share(self, parallel: usize) -> Self {
        MinRate { bytes: self.bytes / u64::try_from(parallel).unwrap_or(u64::MAX).max(1), ..self }
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

/// Measures the rate of one stream. Only time spent waiting for the network counts, because the disk might be
/// slow.
#[derive(Debug)]
pub(crate) struct RateMonitor {
    least: Option<MinRate>,
    waited: Duration,
    bytes: u64,
}

impl RateMonitor {
    /// Creates a monitor for one of `parallel` streams of a layer. Without `least`, any rate is accepted.
    pub(crate) fn new(least: Option<MinRate>, parallel: usize) -> Self {
        RateMonitor { least: least.map(|least| least.share(parallel)), waited: Duration::ZERO, bytes: 0 }
    }

    /// Starts again with another source.
    pub(crate) fn reset(&mut self) {
        (self.waited, self.bytes) = (Duration::ZERO, 0);
    }

    /// Adds `bytes`, for which the network took `time`.
    ///
    /// # Errors
    /// [`Slow`] at the end of a window with too few bytes.
    pub(crate) fn count(&mut self, time: Duration, bytes: usize) -> Result<(), Slow> {
        let Some(least) = self.least else { return Ok(()) };
        self.waited += time;
        self.bytes += bytes as u64;
        if self.waited < least.window {
            return Ok(());
        }
        let (bytes, waited) = (self.bytes, self.waited);
        self.reset();
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
        for (parallel, each, slow) in [(1, 10, false), (1, 9, true), (4, 3, false), (4, 1, true)] {
            let mut monitor = RateMonitor::new(Some(MinRate::per_minute(600)), parallel);
            for n in 1..=180 {
                let counted = monitor.count(second, each);
                assert_eq!(
                    counted.is_err(),
                    slow && n % 60 == 0,
                    "{each} a second of {parallel}: second {n}"
                );
            }
        }
        // A fast window is no credit for the next one.
        let mut monitor = RateMonitor::new(Some(MinRate::per_minute(600)), 1);
        monitor.count(Duration::from_secs(60), 1_000_000).unwrap();
        assert!(matches!(monitor.count(Duration::from_secs(90), 899), Err(Slow { bytes: 899, .. })));
        monitor.count(Duration::from_secs(90), 900).unwrap();
        RateMonitor::new(None, 1).count(Duration::from_secs(3600), 0).unwrap();
    }
}
