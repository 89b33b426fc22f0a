//! Delays of the simulated cluster, and those that are running.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Delays of the simulated cluster. Minutes in a real cluster are short here, to keep tests fast.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Length of a second in `activeDeadlineSeconds`, `ttlSecondsAfterFinished` and grace periods.
    pub second: Duration,
    /// First pause of the Job controller after a failed pod. It doubles each time (10 s in a cluster).
    pub backoff: Duration,
    /// Delay until a claim is bound.
    pub bind: Duration,
    /// Delay from scheduling to the start of a container.
    pub start: Duration,
    /// Delay from the end of a pod to the detachment of its volumes.
    pub detach: Duration,
    /// Delay until a snapshot is taken, and between two attempts.
    pub snapshot: Duration,
    /// Delay until pods are evicted from a lost node (300 s in a cluster).
    pub eviction: Duration,
    /// Interval between bookmarks of an idle watch (about a minute in a cluster).
    pub bookmark: Duration,
    /// Delay from the first quota of a custom kind to the first count of its objects (up to five and a half
    /// minutes in a cluster).
    pub count: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let short = Duration::from_millis(20);
        Timing {
            second: Duration::from_secs(1),
            backoff: short,
            bind: short,
            start: short,
            detach: short,
            snapshot: short,
            eviction: Duration::from_millis(100),
            bookmark: Duration::from_millis(500),
            count: Duration::ZERO,
        }
    }
}

/// Running delays, by object and purpose.
#[derive(Debug, Default)]
pub(super) struct Timers {
    begun: HashMap<(String, &'static str), Instant>,
    pub(super) next: Option<Instant>,
}

impl Timers {
    /// Reports whether `delay` has passed since the first call for this object and purpose.
    pub(super) fn due(&mut self, uid: &str, what: &'static str, delay: Duration) -> bool {
        let now = Instant::now();
        let at = *self.begun.entry((uid.to_owned(), what)).or_insert(now) + delay;
        if now >= at {
            return true;
        }
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
        false
    }

    /// Reports whether a delay of the object `uid` is running.
    pub(super) fn waits(&self, uid: &str) -> bool {
        self.begun.keys().any(|(begun, _)| begun == uid)
    }

    /// Resets a delay, so that the next call of `due` starts it again.
    pub(super) fn reset(&mut self, uid: &str, what: &'static str) {
        self.begun.remove(&(uid.to_owned(), what));
    }
}
