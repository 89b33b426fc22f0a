//! Decides whether the wall clock is reliable enough to delete expired data.
//!
//! A machine without a clock battery starts in 1970 or at its last shutdown, a virtual machine is restored
//! from a snapshot, or an administrator enters the wrong year. None of that may expire what a tenant paid to
//! build.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::Clock;
use larder_model::event::milliseconds;

/// Maximum difference between wall-clock time and time since boot before it counts as a step.
const MAX_DRIFT: Duration = Duration::from_secs(5 * 60);
/// Duration of the pause of expiry after a step.
const HOLD_TIME: Duration = Duration::from_secs(3600);
/// Maximum time after boot to wait for the kernel to report synchronization. Machines that get their time
/// from their host never report it, although their clock is right.
const SYNC_TIMEOUT: Duration = Duration::from_secs(3600);

/// Permission to delete expired data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The clock is considered reliable.
    Allowed,
    /// Expiry is paused for the given reason.
    Held(Reason),
}

/// Reason for which expiry is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The machine has just started and its clock is not synchronized.
    #[error("the machine has just started and the kernel reports its clock as not synchronized")]
    Unsynchronised,
    /// The wall clock was set.
    #[error("the wall clock has moved by more than 5 minutes relative to the time since boot")]
    Stepped,
    /// The wall clock is earlier than at the last check of the previous run.
    #[error("the wall clock is earlier than at the previous run")]
    Earlier,
}

/// Monitors the clocks for steps.
#[derive(Debug)]
pub struct TimeGuard {
    /// Wall-clock time and time since boot at the last check.
    last: (DateTime<Utc>, Duration),
    /// ID of this boot.
    boot: String,
    /// End of the pause as time since boot, and its reason.
    held: Option<(Duration, Reason)>,
    /// `true` if the kernel has reported synchronization in this boot.
    synchronised: bool,
    /// The reason that was logged last.
    logged: Option<Reason>,
}

/// State that outlives a run: the clocks at the last check, and the end of the pause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedClock {
    /// Wall-clock time at the last check.
    pub time: DateTime<Utc>,
    /// ID of the boot to which the next two fields refer.
    pub boot: String,
    /// Time since boot at the last check, in milliseconds.
    pub since_boot_ms: u64,
    /// Time since boot at which the pause ends, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_until_ms: Option<u64>,
}

impl TimeGuard {
    /// Starts monitoring. `noted` is the saved state of an earlier run. A pause of the same boot continues,
    /// and a step between the two runs is detected.
    pub fn new(clock: &dyn Clock, noted: Option<SavedClock>) -> Self {
        let (now, since_boot, boot) = (clock.now(), clock.since_boot(), clock.boot());
        let mut guard =
            TimeGuard { last: (now, since_boot), boot, held: None, synchronised: false, logged: None };
        let Some(noted) = noted else { return guard };
        if noted.boot == guard.boot {
            guard.last = (noted.time, Duration::from_millis(noted.since_boot_ms));
            guard.held = noted.held_until_ms.map(|until| (Duration::from_millis(until), Reason::Stepped));
        }
        if now < noted.time {
            guard.held = Some((since_boot + HOLD_TIME, Reason::Earlier));
        }
        guard
    }

    /// Returns the state to save for the next run.
    pub fn note(&self) -> SavedClock {
        let (time, since_boot) = self.last;
        SavedClock {
            time,
            boot: self.boot.clone(),
            since_boot_ms: milliseconds(since_boot),
            held_until_ms: self.held.map(|(until, _)| milliseconds(until)),
        }
    }

    /// Checks the clocks. The start and the end of a pause are logged.
    pub fn check(&mut self, clock: &dyn Clock) -> Expiry {
        let (now, since_boot) = (clock.now(), clock.since_boot());
        let (wall, boot) = self.last;
        let moved = (now - wall).num_milliseconds();
        let passed = i64::try_from((since_boot.saturating_sub(boot)).as_millis()).unwrap_or(i64::MAX);
        if u128::from(moved.abs_diff(passed)) > MAX_DRIFT.as_millis() {
            self.held = Some((since_boot + HOLD_TIME, Reason::Stepped));
        }
        self.last = (now, since_boot);
        self.synchronised |= clock.is_synchronised();
        if self.held.is_some_and(|(until, _)| until <= since_boot) {
            self.held = None;
        }
        let fresh = since_boot < SYNC_TIMEOUT && !self.synchronised;
        let reason = self.held.map(|(_, reason)| reason).or(fresh.then_some(Reason::Unsynchronised));
        if reason != self.logged {
            match reason {
                Some(reason) => tracing::warn!("expiry of caches is paused for up to 1 hour: {reason}"),
                None if self.logged == Some(Reason::Unsynchronised) && !self.synchronised => {
                    tracing::warn!(
                        "expiry of caches resumes, although the kernel never reported its clock as synchronized"
                    );
                }
                None => tracing::info!("expiry of caches resumes"),
            }
            self.logged = reason;
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

    /// Returns a clock with an uptime of one day.
    fn clock() -> FakeClock {
        let clock = FakeClock::default();
        clock.pass(DAY);
        clock
    }

    fn noted(clock: &FakeClock) -> SavedClock {
        TimeGuard::new(clock, None).note()
    }

    #[test]
    fn a_pause_outlives_a_run() {
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
    fn a_step_between_two_runs_is_detected() {
        let clock = clock();
        let before = noted(&clock);
        clock.pass(DAY);
        assert_eq!(TimeGuard::new(&clock, Some(before.clone())).check(&clock), Expiry::Allowed);
        clock.set_forward(DAY);
        assert_eq!(TimeGuard::new(&clock, Some(before.clone())).check(&clock), Expiry::Held(Reason::Stepped));
        // After a reboot, the downtime is unknown.
        clock.reboot();
        assert_eq!(TimeGuard::new(&clock, Some(before)).check(&clock), Expiry::Allowed);
    }

    #[test]
    fn passing_time_is_not_a_step() {
        let clock = clock();
        let mut guard = TimeGuard::new(&clock, Some(noted(&clock)));
        for _ in 0..5 {
            clock.pass(10 * DAY);
            assert_eq!(guard.check(&clock), Expiry::Allowed);
        }
        clock.set_back(5 * MINUTE);
        assert_eq!(guard.check(&clock), Expiry::Allowed, "a difference at the limit is not a step");
    }

    #[test]
    fn a_step_pauses_expiry_for_an_hour() {
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
    fn a_start_before_the_last_check_pauses_expiry() {
        let clock = clock();
        let later = SavedClock { time: clock.now() + chrono::TimeDelta::seconds(1), ..noted(&clock) };
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
        assert_eq!(guard.check(&clock), Expiry::Allowed, "it was synchronized once in this boot");

        let mut never = TimeGuard::new(&clock, None);
        clock.pass(30 * MINUTE);
        assert_eq!(never.check(&clock), Expiry::Held(Reason::Unsynchronised));
        clock.pass(29 * MINUTE);
        assert_eq!(never.check(&clock), Expiry::Allowed);
    }
}
