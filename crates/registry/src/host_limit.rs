//! Limit for concurrent requests to one host: halved when the host reports overload, and raised one by one
//! while it answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Minimum time between two reductions: requests that were sent together fail together.
const PAUSE: Duration = Duration::from_millis(500);

/// The limit of one host.
#[derive(Debug)]
pub(crate) struct HostLimit {
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    max: usize,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// Permits in use that must not return to the semaphore.
    surplus: usize,
    /// Responses since the last change of the limit.
    answered: usize,
    reduced: Option<Instant>,
}

/// Permission for one request, until it is dropped.
#[derive(Debug)]
pub(crate) struct HostPermit {
    host: Arc<HostLimit>,
    permit: Option<OwnedSemaphorePermit>,
}

impl HostLimit {
    /// Creates a limit that starts at its maximum.
    pub(crate) fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        let state = State { limit: max, surplus: 0, answered: 0, reduced: None };
        HostLimit { permits: Arc::new(Semaphore::new(max)), state: Mutex::new(state), max }
    }

    /// Waits for a permit. `None` if the client is shutting down.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Option<HostPermit> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        Some(HostPermit { host: Arc::clone(self), permit: Some(permit) })
    }

    /// Halves the limit: the host answered that it is overloaded.
    pub(crate) fn overloaded(&self, now: Instant) {
        let mut state = self.state();
        if state.reduced.is_some_and(|at| now < at + PAUSE) {
            return;
        }
        let excess = state.limit / 2;
        state.limit -= excess;
        state.surplus += excess - self.permits.forget_permits(excess);
        (state.answered, state.reduced) = (0, Some(now));
    }

    /// Raises a reduced limit by one after as many responses as it allows at once.
    pub(crate) fn answered(&self) {
        let mut state = self.state();
        if state.limit == self.max {
            return;
        }
        state.answered += 1;
        if state.answered < state.limit {
            return;
        }
        state.answered = 0;
        state.limit += 1;
        match state.surplus.checked_sub(1) {
            Some(rest) => state.surplus = rest,
            None => self.permits.add_permits(1),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HostPermit {
    fn drop(&mut self) {
        let mut state = self.host.state();
        if let Some(rest) = state.surplus.checked_sub(1)
            && let Some(permit) = self.permit.take()
        {
            state.surplus = rest;
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(host: &HostLimit) -> usize {
        host.permits.available_permits()
    }

    #[tokio::test]
    async fn the_limit_is_halved_and_grows_again() {
        let host = Arc::new(HostLimit::new(8));
        let (used, now) = (host.acquire().await.unwrap(), Instant::now());
        host.overloaded(now);
        assert_eq!(free(&host), 3, "4 in all, one of them in use");
        // A second response to the same burst.
        host.overloaded(now);
        assert_eq!(free(&host), 3);
        drop(used);
        assert_eq!(free(&host), 4);
        for expected in [5, 6, 7, 8, 8] {
            for _ in 0..expected - 1 {
                host.answered();
            }
            assert_eq!(free(&host), expected);
        }
    }

    #[tokio::test]
    async fn permits_in_use_beyond_the_limit_do_not_return() {
        let host = Arc::new(HostLimit::new(4));
        let mut used = Vec::new();
        for _ in 0..4 {
            used.push(host.acquire().await.unwrap());
        }
        let mut now = Instant::now();
        for expected in [2, 1, 1] {
            host.overloaded(now);
            assert_eq!(host.state().limit, expected);
            now += PAUSE;
        }
        // The limit grows to 2 before the surplus is returned.
        host.answered();
        used.pop();
        used.pop();
        assert_eq!(free(&host), 0);
        used.pop();
        assert_eq!(free(&host), 1);
        used.pop();
        assert_eq!(free(&host), 2);
    }
}
