//! Number of connections for one blob: more only while the consumer waits for the network, and only if they
//! bring more bytes.

use std::time::Duration;

use tokio::time::Instant;

/// Duration of a period, after which the number can change.
const PERIOD: Duration = Duration::from_millis(100);
/// Number of periods in which more connections must prove useful, after one in which they open.
const TRIAL: u32 = 3;
/// The network is the bottleneck if the consumer waits for at least this share of a period.
const STARVED: f64 = 0.25;
/// More connections stay only if the rate grows by this factor: some servers slow down clients that have
/// many.
const GAIN: f64 = 1.1;
/// First pause after a trial without gain. It doubles with each such trial.
const PAUSE: Duration = Duration::from_secs(2);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Chooses the number of connections.
#[derive(Debug)]
pub(crate) struct Width {
    current: usize,
    max: usize,
    /// Start of the period, and the wait of the consumer since then.
    started: Instant,
    waited: Duration,
    /// Start of the measurement of the rate, and the bytes received before.
    measured: Instant,
    received: u64,
    trial: Option<Trial>,
    pause: Duration,
    not_before: Instant,
}

/// An attempt with more connections.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Rate before, bytes per second.
    before: f64,
    /// Remaining periods.
    periods: u32,
}

impl Width {
    /// Starts with one connection.
    pub(crate) fn new(max: usize, now: Instant) -> Self {
        Width {
            current: 1,
            max,
            started: now,
            waited: Duration::ZERO,
            measured: now,
            received: 0,
            trial: None,
            pause: PAUSE,
            not_before: now,
        }
    }

    pub(crate) fn get(&self) -> usize {
        self.current
    }

    /// Returns the time until the period ends.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        match self.max {
            1 => Duration::MAX,
            _ => (self.started + PERIOD).saturating_duration_since(now),
        }
    }

    /// Adds a wait of the consumer that ends now. `received` is the number of bytes over all connections so
    /// far. With `is_full`, connections had to stop because the consumer does not take their bytes yet.
    pub(crate) fn waited(&mut self, now: Instant, time: Duration, received: u64, is_full: bool) {
        self.waited += time;
        let elapsed = now.saturating_duration_since(self.started);
        if self.max == 1 || elapsed < PERIOD {
            return;
        }
        let is_starved = self.waited.as_secs_f64() >= STARVED * elapsed.as_secs_f64();
        (self.started, self.waited) = (now, Duration::ZERO);
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
        let rate = received.saturating_sub(self.received) as f64 / (now - self.measured).as_secs_f64();
        if let Some(trial) = &mut self.trial {
            // Full connections show no rate.
            if is_full || trial.periods > TRIAL {
                trial.periods = TRIAL;
                return self.measure(now, received);
            }
            trial.periods -= 1;
            if trial.periods > 0 {
                return;
            }
            if is_starved && rate < trial.before * GAIN {
                self.current = self.current.div_ceil(2);
                self.not_before = now + self.pause;
                self.pause = (self.pause * 2).min(MAX_PAUSE);
            } else {
                self.pause = PAUSE;
            }
            self.trial = None;
            self.measure(now, received);
        } else if now - self.measured >= PERIOD * 10 {
            self.measure(now, received);
        }
        if is_starved && self.current < self.max && now >= self.not_before {
            self.current = (self.current * 2).min(self.max);
            self.trial = Some(Trial { before: rate, periods: TRIAL + 1 });
        }
    }

    fn measure(&mut self, now: Instant, received: u64) {
        (self.measured, self.received) = (now, received);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream over simulated time.
    struct Stream {
        width: Width,
        now: Instant,
        received: u64,
    }

    impl Stream {
        fn new(max: usize) -> Self {
            let now = Instant::now();
            Stream { width: Width::new(max, now), now, received: 0 }
        }

        /// Runs for a number of periods in which the consumer waits for `wait`, and returns the number of
        /// connections after each. `rate` returns the bytes per period of a number of connections.
        fn run(
            &mut self,
            periods: usize,
            wait: Duration,
            is_full: bool,
            rate: impl Fn(usize) -> usize,
        ) -> Vec<usize> {
            let period = |_| {
                self.now += PERIOD;
                self.received += rate(self.width.get()) as u64;
                self.width.waited(self.now, wait, self.received, is_full);
                self.width.get()
            };
            (0..periods).map(period).collect()
        }
    }

    #[test]
    fn connections_that_help_stay() {
        let widths = Stream::new(8).run(12, PERIOD, false, |n| 1000 * n);
        assert_eq!(widths, [2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8]);
        assert_eq!(Stream::new(3).run(7, PERIOD, false, |n| 1000 * n), [2, 2, 2, 2, 3, 3, 3]);
    }

    #[test]
    fn a_busy_consumer_needs_no_more() {
        assert_eq!(Stream::new(8).run(30, PERIOD / 5, false, |n| 1000 * n), [1; 30]);
        let one = Stream::new(1);
        assert_eq!(one.width.rest(one.now), Duration::MAX);
    }

    #[test]
    fn a_server_that_slows_down_keeps_one_connection() {
        let widths = Stream::new(8).run(1000, PERIOD, false, |n| 1000 / n);
        let alone = widths.iter().filter(|n| **n == 1).count();
        assert!(widths.iter().all(|n| *n <= 2) && alone > 950, "{alone}");
    }

    #[test]
    fn full_connections_are_not_judged() {
        let mut stream = Stream::new(8);
        stream.run(1, PERIOD, false, |_| 1000);
        assert_eq!(stream.run(20, PERIOD, true, |_| 0), [2; 20]);
        assert_eq!(stream.run(4, PERIOD, false, |n| 1000 * n), [2, 2, 4, 4]);
    }
}
