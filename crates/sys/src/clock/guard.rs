//! Whether the wall clock can be believed when something is about to be thrown away because of it.
//!
//! A machine without a battery starts in 1970 or at its last shutdown, a virtual machine is restored from a snapshot, a
//! person types the wrong year. None of that may expire what a tenant paid to build.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

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
    /// This boot.
    boot: String,
    /// Until when since boot nothing expires, and why.
    held: Option<(Duration, Reason)>,
    /// Whether the kernel was heard to be synchronised in this boot.
    synchronised: bool,
    /// What was logged last.
    told: Option<Reason>,
}

/// What outlives a run: the clocks as they were looked at last, and until when nothing expires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Wall-clock time.
    pub time: DateTime<Utc>,
    /// The boot that the next two count from.
    pub boot: String,
    /// Time since then, milliseconds.
    pub since_boot_ms: u64,
    /// Time since then at which a hold ends, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_until_ms: Option<u64>,
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl TimeGuard {
    /// Begins to watch. `noted` is what an earlier run noted last: a hold of this boot goes on, and a step between the two
    /// runs is one.
    pub fn new(clock: &dyn Clock, noted: Option<Noted>) -> Self {
        let (now, since_boot, boot) = (clock.now(), clock.since_boot(), clock.boot());
        let mut guard =
            TimeGuard { last: (now, since_boot), boot, held: None, synchronised: false, told: None };
        let Some(noted) = noted else { return guard };
        if noted.boot == guard.boot {
            guard.last = (noted.time, Duration::from_millis(noted.since_boot_ms));
            guard.held = noted.held_until_ms.map(|until| (Duration::from_millis(until), Reason::Stepped));
        }
        if now < noted.time {
            guard.held = Some((since_boot + HOLD, Reason::Earlier));
        }
        guard
    }

    /// What the next run has to know.
    pub fn note(&self) -> Noted {
        let (time, since_boot) = self.last;
        Noted {
            time,
            boot: self.boot.clone(),
            since_boot_ms: milliseconds(since_boot),
            held_until_ms: self.held.map(|(until, _)| milliseconds(until)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::fake::FakeClock;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    /// Up for a day.
    fn clock() -> FakeClock {
        let clock = FakeClock::default();
        clock.pass(DAY);
        clock
    }

    fn noted(clock: &FakeClock) -> Noted {
        TimeGuard::new(clock, None).note()
    }

    #[test]
    fn a_hold_outlives_a_run() {
        let clock = clock();
        let mut guard = TimeGuard::new(&clock, None);
        clock.set_forward(DAY);
        assert_eq!(guard.check(&clock), Expiry::Held(Reason::Stepped));
        clock.pass(30 * MINUTE);
        guard.check(&clock);
        let mut next = TimeGuard::new(&clock, Some(guard.note()));
        assert_eq!(next.check(&clock), Expiry::Held(Reason::Stepped));
        clock.pass(30 * MINUTE);
        assert_eq!(next.check(&clock), Expiry::Allowed);
    }

    #[test]
    fn a_step_between_two_runs_is_one() {
        let clock = clock();
        let before = noted(&clock);
        clock.pass(DAY);
        assert_eq!(TimeGuard::new(&clock, Some(before.clone())).check(&clock), Expiry::Allowed);
        clock.set_forward(DAY);
        assert_eq!(TimeGuard::new(&clock, Some(before.clone())).check(&clock), Expiry::Held(Reason::Stepped));
        // After another boot nobody knows how long the machine was down.
        clock.reboot();
        assert_eq!(TimeGuard::new(&clock, Some(before)).check(&clock), Expiry::Allowed);
    }

    #[test]
    fn time_that_passes_is_no_step() {
        let clock = clock();
        let mut guard = TimeGuard::new(&clock, Some(noted(&clock)));
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
        let later = Noted { time: clock.now() + chrono::TimeDelta::seconds(1), ..noted(&clock) };
        let mut guard = TimeGuard::new(&clock, Some(later));
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
