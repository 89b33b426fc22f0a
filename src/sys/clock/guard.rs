//! Whether the wall clock can be believed when something is about to be thrown away because of it.
//!
//! A machine without a battery starts in 1970 or at its last shutdown, a virtual machine is restored from a snapshot, a
//! person types the wrong year. None of that may expire what a tenant paid to build.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::Clock;

/// How far the wall may move against the time since boot before it is a step.
const STEP: Duration = Duration::from_secs(5 * 60);
/// How long nothing expires after a step.
const HOLD: Duration = Duration::from_secs(3600);
/// For how long after boot the kernel's word is waited for. Machines whose time comes from their host never say that they
/// are synchronised, and theirs is right all the same.
const FRESH: Duration = Duration::from_secs(3600);

/// Whether expiry may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The clock is believed.
    Allowed,
    /// Nothing expires for now.
    Held(Reason),
}

/// Why nothing expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The machine has just started and nobody has told it the time.
    #[error("the machine has just started and the kernel says that its clock is not synchronised")]
    Unsynchronised,
    /// The wall clock was set.
    #[error("the wall clock has moved by more than 5 minutes against the time since boot")]
    Stepped,
    /// It is earlier than it was when the last daemon looked.
    #[error("the wall clock is earlier than at the last run")]
    Earlier,
}

/// Watches the clocks.
#[derive(Debug)]
pub struct TimeGuard {
    /// The last look: wall and time since boot.
    last: (DateTime<Utc>, Duration),
    /// Until when since boot nothing expires, and why.
    held: Option<(Duration, Reason)>,
    /// Whether the kernel was heard to be synchronised in this boot.
    synchronised: bool,
    /// What was logged last.
    told: Option<Reason>,
}

impl TimeGuard {
    /// Begins to watch. `stored` is the latest time that an earlier run noted.
    pub fn new(clock: &dyn Clock, stored: Option<DateTime<Utc>>) -> Self {
        let (now, since_boot) = (clock.now(), clock.since_boot());
        let earlier = stored.is_some_and(|stored| now < stored);
        TimeGuard {
            last: (now, since_boot),
            held: earlier.then_some((since_boot + HOLD, Reason::Earlier)),
            synchronised: false,
            told: None,
        }
    }

    /// Looks at the clocks. A hold is logged when it begins.
    pub fn check(&mut self, clock: &dyn Clock) -> Expiry {
        let (now, since_boot) = (clock.now(), clock.since_boot());
        let (wall, boot) = self.last;
        let moved = (now - wall).num_milliseconds();
        let passed = i64::try_from((since_boot.saturating_sub(boot)).as_millis()).unwrap_or(i64::MAX);
        if u128::from(moved.abs_diff(passed)) > STEP.as_millis() {
            self.held = Some((since_boot + HOLD, Reason::Stepped));
        }
        self.last = (now, since_boot);
        self.synchronised |= clock.is_synchronised();
        if self.held.is_some_and(|(until, _)| until <= since_boot) {
            self.held = None;
        }
        let fresh = since_boot < FRESH && !self.synchronised;
        let reason = self.held.map(|(_, reason)| reason).or(fresh.then_some(Reason::Unsynchronised));
        if reason != self.told {
            match reason {
                Some(reason) => tracing::warn!("nothing expires for up to an hour: {reason}"),
                None if self.told == Some(Reason::Unsynchronised) && !self.synchronised => {
                    tracing::warn!(
                        "expiry goes on, though the kernel never said that its clock is synchronised"
                    );
                }
                None => tracing::info!("expiry goes on"),
            }
            self.told = reason;
        }
        reason.map_or(Expiry::Allowed, Expiry::Held)
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::clock::FakeClock;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    /// Up for a day.
    fn clock() -> FakeClock {
        let clock = FakeClock::default();
        clock.pass(DAY);
        clock
    }

    #[test]
    fn time_that_passes_is_no_step() {
        let clock = clock();
        let mut guard = TimeGuard::new(&clock, Some(clock.now()));
        for _ in 0..5 {
            clock.pass(10 * DAY);
            assert_eq!(guard.check(&clock), Expiry::Allowed);
        }
        clock.set_back(5 * MINUTE);
        assert_eq!(guard.check(&clock), Expiry::Allowed, "the limit itself is no step");
    }

    #[test]
    fn a_step_holds_for_an_hour() {
        for forward in [true, false] {
            let clock = clock();
            let mut guard = TimeGuard::new(&clock, None);
            if forward {
                clock.set_forward(DAY)
            } else {
                clock.set_back(6 * MINUTE)
            }
            assert_eq!(guard.check(&clock), Expiry::Held(Reason::Stepped));
            clock.pass(59 * MINUTE);
            assert_eq!(guard.check(&clock), Expiry::Held(Reason::Stepped));
            clock.pass(MINUTE);
            assert_eq!(guard.check(&clock), Expiry::Allowed);
        }
    }

    #[test]
    fn a_start_before_the_last_time_holds() {
        let clock = clock();
        let mut guard = TimeGuard::new(&clock, Some(clock.now() + chrono::TimeDelta::seconds(1)));
        assert_eq!(guard.check(&clock), Expiry::Held(Reason::Earlier));
        clock.pass(60 * MINUTE);
        assert_eq!(guard.check(&clock), Expiry::Allowed);
    }

    #[test]
    fn a_fresh_boot_waits_for_the_kernel() {
        let clock = FakeClock::default();
        clock.synchronise(false);
        clock.pass(MINUTE);
        let mut guard = TimeGuard::new(&clock, None);
        assert_eq!(guard.check(&clock), Expiry::Held(Reason::Unsynchronised));
        clock.synchronise(true);
        assert_eq!(guard.check(&clock), Expiry::Allowed);
        clock.synchronise(false);
        assert_eq!(guard.check(&clock), Expiry::Allowed, "it was synchronised once in this boot");

        let mut never = TimeGuard::new(&clock, None);
        clock.pass(30 * MINUTE);
        assert_eq!(never.check(&clock), Expiry::Held(Reason::Unsynchronised));
        clock.pass(29 * MINUTE);
        assert_eq!(never.check(&clock), Expiry::Allowed);
    }
}
