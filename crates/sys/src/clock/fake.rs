//! A clock for tests that moves only on request.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::Clock;

/// A clock that starts in 2026, on a machine that has just booted and is synchronized.
#[derive(Debug)]
pub struct FakeClock(Mutex<State>);

#[derive(Debug)]
struct State {
    now: DateTime<Utc>,
    since_boot: Duration,
    synchronised: bool,
    boots: u32,
}

impl Default for FakeClock {
    fn default() -> Self {
        let now = DateTime::from_timestamp(1_780_000_000, 0).unwrap_or_default();
        FakeClock(Mutex::new(State { now, since_boot: Duration::ZERO, synchronised: true, boots: 1 }))
    }
}

impl FakeClock {
    /// Advances both clocks by `time`.
    pub fn pass(&self, time: Duration) {
        let mut state = self.state();
        state.now += delta(time);
        state.since_boot += time;
    }

    /// Sets the wall clock forward, as an administrator would.
    pub fn set_forward(&self, by: Duration) {
        self.state().now += delta(by);
    }

    /// Sets the wall clock back by `by`.
    pub fn set_back(&self, by: Duration) {
        self.state().now -= delta(by);
    }

    /// Reboots the machine; the wall clock keeps its value.
    pub fn reboot(&self) {
        let mut state = self.state();
        state.since_boot = Duration::ZERO;
        state.boots += 1;
    }

    /// Sets whether the kernel reports its clock as synchronized.
    pub fn synchronise(&self, synchronised: bool) {
        self.state().synchronised = synchronised;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn delta(time: Duration) -> TimeDelta {
    TimeDelta::from_std(time).unwrap_or(TimeDelta::MAX)
}

impl Clock for FakeClock {
    fn now(&self) -> DateTime<Utc> {
        self.state().now
    }

    fn since_boot(&self) -> Duration {
        self.state().since_boot
    }

    fn boot(&self) -> String {
        format!("boot {}", self.state().boots)
    }

    fn is_synchronised(&self) -> bool {
        self.state().synchronised
    }
}
