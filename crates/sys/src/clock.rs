//! Clocks: wall-clock time, time since boot, and whether the kernel considers the wall clock synchronized.

pub mod fake;
pub mod guard;
mod kernel;

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

/// A source of time, which tests replace.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Returns the wall-clock time (`CLOCK_REALTIME`), which can be set forwards and backwards.
    fn now(&self) -> DateTime<Utc>;

    /// Returns the time since the machine started, including sleep (`CLOCK_BOOTTIME`). It never jumps.
    fn since_boot(&self) -> Duration;

    /// Returns the ID of this boot. [`since_boot`](Clock::since_boot) values of different boots are
    /// unrelated.
    fn boot(&self) -> String;

    /// Reports whether the kernel considers the wall clock synchronized (adjtimex(2): not `STA_UNSYNC`).
    fn is_synchronised(&self) -> bool;
}

/// The clocks of the machine itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn since_boot(&self) -> Duration {
        // This fails only for an unknown clock; this clock exists since Linux 2.6.39.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
    }

    fn boot(&self) -> String {
        // Without /proc every start counts as a new boot, which is the safe assumption.
        super::process::boot_id().unwrap_or_else(|_| Uuid::new_v4().to_string())
    }

    fn is_synchronised(&self) -> bool {
        kernel::is_synchronised()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_been_up_for_a_while() {
        let before = SystemClock.since_boot();
        assert!(before > Duration::ZERO && SystemClock.since_boot() >= before);
        // The result depends on the machine; only the call itself is tested.
        let _ = SystemClock.is_synchronised();
    }
}
