//! The time: what the wall says, how long this boot has run, and whether the kernel believes its own clock.

pub mod fake;
pub mod guard;
mod kernel;

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use nix::time::{ClockId, clock_gettime};
use uuid::Uuid;

/// Where the time comes from; tests bring their own.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Wall-clock time (`CLOCK_REALTIME`); it may be set, forwards and backwards.
    fn now(&self) -> DateTime<Utc>;

    /// Time since the machine started, sleep included (`CLOCK_BOOTTIME`); it never jumps.
    fn since_boot(&self) -> Duration;

    /// A name of this boot; [`since_boot`](Clock::since_boot) of another one is another count.
    fn boot(&self) -> String;

    /// Whether the kernel holds the wall clock for synchronised (adjtimex(2): not `STA_UNSYNC`).
    fn is_synchronised(&self) -> bool;
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn since_boot(&self) -> Duration {
        // Fails only for a clock that the kernel does not have; this one came with Linux 2.6.39.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
    }

    fn boot(&self) -> String {
        // Without /proc every start is taken for another boot, which is the careful way.
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
        // Whatever it says, asking works.
        let _ = SystemClock.is_synchronised();
    }
}
