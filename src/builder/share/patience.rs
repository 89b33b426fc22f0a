//! How long a builder waits for layers that another one has but has not committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Time without anything else to do after which a layer that is only ready is fetched. The other builder is then dead, or
/// waits itself for what we have.
const LIMIT: Duration = Duration::from_secs(10);

/// The layers of a build that are not done, and those of them that only wait for another builder's commit.
#[derive(Debug)]
pub(in crate::builder) struct Idle {
    unfinished: AtomicUsize,
    waiting: AtomicUsize,
}

impl Idle {
    /// A build with `layers` to get.
    pub(in crate::builder) fn new(layers: usize) -> Arc<Self> {
        Arc::new(Idle { unfinished: AtomicUsize::new(layers), waiting: AtomicUsize::new(0) })
    }

    /// A layer was got, or failed.
    pub(in crate::builder) fn finished(&self) {
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= self.unfinished.load(Ordering::Relaxed)
    }
}

/// The patience of one layer.
#[derive(Debug)]
pub(in crate::builder) struct Patience {
    idle: Arc<Idle>,
    spent: Duration,
    waiting_since: Option<Instant>,
}

impl Patience {
    /// All of it.
    pub(in crate::builder) fn new(idle: &Arc<Idle>) -> Self {
        Patience { idle: Arc::clone(idle), spent: Duration::ZERO, waiting_since: None }
    }

    /// Whether there is any left.
    pub(in crate::builder) fn lasts(&self) -> bool {
        self.spent < LIMIT
    }

    /// The layer was seen ready at `now`, and not for the first time if this is called again.
    pub(in crate::builder) fn wait(&mut self, now: Instant) {
        match self.waiting_since.replace(now) {
            None => {
                self.idle.waiting.fetch_add(1, Ordering::Relaxed);
            }
            Some(before) if self.idle.is_idle() => self.spent += now.saturating_duration_since(before),
            Some(_) => {}
        }
    }

    /// The layer waits no more, or for something else.
    pub(in crate::builder) fn go_on(&mut self) {
        if self.waiting_since.take().is_some() {
            self.idle.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_idle_time_is_spent() {
        let idle = Idle::new(2);
        let mut patience = Patience::new(&idle);
        let start = Instant::now();
        patience.wait(start);
        patience.wait(start + 9 * LIMIT);
        assert!(patience.lasts(), "the other layer is at work");
        let mut other = Patience::new(&idle);
        other.wait(start);
        patience.wait(start + 10 * LIMIT - Duration::from_nanos(1));
        assert!(patience.lasts());
        patience.wait(start + 10 * LIMIT);
        assert!(!patience.lasts());
        patience.go_on();
        idle.finished();
        assert!(idle.is_idle(), "the one that is left waits");
        drop(other);
        assert!(!idle.is_idle());
    }
}
