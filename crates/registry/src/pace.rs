//! The least that a registry must send: a layer that dribbles holds a builder that others wait for.

use std::time::Duration;

use super::error::Fault;

/// The least number of bytes in a window of time spent waiting for the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinRate {
    /// Bytes.
    pub bytes: u64,
    /// The window. A layer is not looked at before so much time was spent waiting for it.
    pub window: Duration,
}

impl MinRate {
    /// `bytes` in each minute.
    pub fn per_minute(bytes: u64) -> Self {
        MinRate { bytes, window: Duration::from_secs(60) }
    }

    /// What one of `parallel` streams must send.
    fn share(self, parallel: usize) -> Self {
        MinRate { bytes: self.bytes / u64::try_from(parallel).unwrap_or(u64::MAX).max(1), ..self }
    }
}

/// How fast one stream is. Time in which nothing was asked of the network does not count: a disk may be slow.
#[derive(Debug)]
pub(crate) struct Pace {
    least: Option<MinRate>,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// The pace of one of `parallel` streams of a layer. Without a `least` any is good.
    pub(crate) fn new(least: Option<MinRate>, parallel: usize) -> Self {
        Pace { least: least.map(|least| least.share(parallel)), waited: Duration::ZERO, bytes: 0 }
    }

    /// Starts again, with another source.
    pub(crate) fn reset(&mut self) {
        (self.waited, self.bytes) = (Duration::ZERO, 0);
    }

    /// Counts `bytes` for which the network took `time`.
    ///
    /// # Errors
    /// [`Fault::Slow`] at the end of a window with too few bytes.
    pub(crate) fn count(&mut self, time: Duration, bytes: usize) -> Result<(), Fault> {
        let Some(least) = self.least else { return Ok(()) };
        self.waited += time;
        self.bytes += bytes as u64;
        if self.waited < least.window {
            return Ok(());
        }
        let (bytes, waited) = (self.bytes, self.waited);
        self.reset();
        if u128::from(bytes) * least.window.as_nanos() < u128::from(least.bytes) * waited.as_nanos() {
            return Err(Fault::Slow { bytes, waited, least });
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
            let mut pace = Pace::new(Some(MinRate::per_minute(600)), parallel);
            for n in 1..=180 {
                let counted = pace.count(second, each);
                assert_eq!(
                    counted.is_err(),
                    slow && n % 60 == 0,
                    "{each} a second of {parallel}: second {n}"
                );
            }
        }
        // What came fast in one window is no credit for the next.
        let mut pace = Pace::new(Some(MinRate::per_minute(600)), 1);
        pace.count(Duration::from_secs(60), 1_000_000).unwrap();
        assert!(matches!(pace.count(Duration::from_secs(90), 899), Err(Fault::Slow { bytes: 899, .. })));
        pace.count(Duration::from_secs(90), 900).unwrap();
        Pace::new(None, 1).count(Duration::from_secs(3600), 0).unwrap();
    }
}
