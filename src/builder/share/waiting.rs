//! Limits how long a builder waits for layers that another one has extracted but not committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Idle time after which a layer that is only ready is fetched. The other builder has then exited, or waits
/// for a layer of this build.
const LIMIT: Duration = Duration::from_secs(10);

/// Counts the unfinished layers of a build, and those of them that only wait for another builder's commit.
#[derive(Debug)]
pub(in crate::builder) struct IdleTracker {
    unfinished: AtomicUsize,
    waiting: AtomicUsize,
}

impl IdleTracker {
    /// Creates the counters of a build with `layers` to acquire.
    pub(in crate::builder) fn new(layers: usize) -> Arc<Self> {
        Arc::new(IdleTracker { unfinished: AtomicUsize::new(layers), waiting: AtomicUsize::new(0) })
    }

    /// Records that a layer was acquired or failed.
    pub(in crate::builder) fn finished(&self) {
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.unfinished.load(Ordering::Relaxed)
    }
}

/// Limits the waiting time of one layer.
#[derive(Debug)]
pub(in crate::builder) struct WaitLimit {
    idle: Arc<IdleTracker>,
    spent: Duration,
    waiting_since: Option<Instant>,
}

impl WaitLimit {
    /// Creates the limit with the full time.
    pub(in crate::builder) fn new(idle: &Arc<IdleTracker>) -> Self {
        WaitLimit { idle: Arc::clone(idle), spent: Duration::ZERO, waiting_since: None }
    }

    /// Reports whether the layer can still wait.
    pub(in crate::builder) fn has_time_left(&self) -> bool {
        self.spent < LIMIT
    }

    /// Records that the layer was seen ready at `now`. Repeated calls count the idle time in between.
    pub(in crate::builder) fn wait(&mut self, now: Instant) {
        match self.waiting_since.replace(now) {
            None => {
                self.idle.waiting.fetch_add(1, Ordering::Relaxed);
            }
            Some(before) if self.idle.is_idle() => self.spent += now.saturating_duration_since(before),
            Some(_) => {}
        }
    }

    /// Records that the layer no longer waits for a commit.
    pub(in crate::builder) fn stop_waiting(&mut self) {
        if self.waiting_since.take().is_some() {
            self.idle.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for WaitLimit {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_idle_time_is_spent() {
        let idle = IdleTracker::new(2);
        let mut wait_limit = WaitLimit::new(&idle);
        let start = Instant::now();
        wait_limit.wait(start);
        wait_limit.wait(start + 9 * LIMIT);
        assert!(wait_limit.has_time_left(), "the other layer is at work");
        let mut other = WaitLimit::new(&idle);
        other.wait(start);
        wait_limit.wait(start + 10 * LIMIT - Duration::from_nanos(1));
        assert!(wait_limit.has_time_left());
        wait_limit.wait(start + 10 * LIMIT);
        assert!(!wait_limit.has_time_left());
        wait_limit.stop_waiting();
        idle.finished();
        assert!(idle.is_idle(), "the one that is left waits");
        drop(other);
        assert!(!idle.is_idle());
    }
}
