//! Retry policy: full jitter (a random wait up to a bound that doubles), and the wait that the server
//! requests.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::Fault;

/// Limits for the attempts at a request.
#[derive(Clone, Debug)]
pub struct Retries {
    /// Maximum number of attempts without progress; at least 1.
    pub attempts: u32,
    /// Limits for a host that cannot be reached and has not answered before: its name can be wrong.
    pub unreachable: Unreachable,
    /// Bound of the first wait; doubles with each attempt.
    pub base: Duration,
    /// Upper bound of every wait.
    pub cap: Duration,
    /// Maximum Retry-After that is honoured.
    pub retry_after_cap: Duration,
}

/// Limits for the attempts at a host that has never answered.
#[derive(Clone, Copy, Debug)]
pub struct Unreachable {
    /// Maximum number of attempts; at least 1.
    pub attempts: u32,
    /// Maximum duration of all attempts together. No attempt starts that is expected to exceed it.
    pub duration: Duration,
}

/// The attempts at a request so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    /// Number of attempts without progress.
    pub(crate) count: u32,
    /// Their duration, if the host has never answered.
    pub(crate) unanswered: Option<Duration>,
    /// `true` if another host follows. Such a host gets fewer attempts, and none if it requests a wait.
    pub(crate) is_followed: bool,
}

impl Unreachable {
    /// Reports whether another attempt is allowed. It is expected to take as long as those before.
    fn allows(self, count: u32, spent: Duration) -> bool {
        let expected = spent.saturating_add(spent / count.max(1));
        count < self.attempts && expected <= self.duration
    }
}

impl Default for Retries {
    /// 6 attempts, waits up to 0.25 s that double up to 30 s, Retry-After up to 2 minutes. No other limits
    /// for an unreachable host.
    fn default() -> Self {
        Retries {
            attempts: 6,
            unreachable: Unreachable { attempts: u32::MAX, duration: Duration::MAX },
            base: Duration::from_millis(250),
            cap: Duration::from_secs(30),
            retry_after_cap: Duration::from_secs(120),
        }
    }
}

impl Retries {
    /// Returns the wait before another attempt at the same host, or `None` if there must be none.
    pub(crate) fn again(&self, fault: &Fault, attempts: Attempts) -> Option<Duration> {
        let Attempts { count, unanswered, is_followed } = attempts;
        let asked = fault.retry()?;
        let max = if is_followed { self.attempts.min(2) } else { self.attempts };
        let is_sent_away = is_followed && asked.is_some_and(|wait| !wait.is_zero());
        if let (Fault::Unreachable(_), Some(spent)) = (fault, unanswered)
            && !self.unreachable.allows(count, spent)
        {
            return None;
        }
        (count < max && !is_sent_away).then(|| self.wait(count, asked))
    }

    /// Returns the wait between attempt `attempt` (from 1) and the next: at least the wait that the server
    /// requested.
    fn wait(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let factor = 1u32 << attempt.saturating_sub(1).min(16);
        let bound = self.base.saturating_mul(factor).min(self.cap);
        let wait = bound.mul_f64(fraction());
        match asked {
            // Adds a little jitter, so that clients with the same Retry-After do not return in the same
            // second.
            Some(asked) => asked.min(self.retry_after_cap) + wait.min(Duration::from_secs(1)),
            None => wait,
        }
    }
}

/// Reports whether a later attempt might get another status.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    // 501 and 505 are permanent; proxies use their own statuses above 504.
    matches!(status.as_u16(), 408 | 429) || status.is_server_error() && !matches!(status.as_u16(), 501 | 505)
}

/// Returns a random number in 0..1. `RandomState` has a different seed each time, which is random enough for
/// jitter.
fn fraction() -> f64 {
    let random = RandomState::new().hash_one(0u8) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
    let fraction = random as f64 / (1u64 << 53) as f64;
    fraction
}

/// Parses Retry-After: seconds or an HTTP date (RFC 9110, 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(value).ok()?.with_timezone(&Utc);
    Some((date - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_under_their_bounds() {
        let retries = Retries::default();
        for attempt in 1..100 {
            assert!(retries.wait(attempt, None) <= Duration::from_secs(30));
        }
        assert!(retries.wait(1, None) <= Duration::from_millis(250));
        let asked = retries.wait(1, Some(Duration::from_secs(7)));
        assert!(asked >= Duration::from_secs(7) && asked <= Duration::from_secs(8));
        assert!(retries.wait(1, Some(Duration::from_secs(86_400))) <= Duration::from_secs(121));
    }

    #[test]
    fn a_host_that_another_follows_is_not_waited_for() {
        let retries = Retries::default();
        let busy =
            |seconds| Fault::Transient { reason: "429".into(), wait: Some(Duration::from_secs(seconds)) };
        let again = |fault: &Fault, count, is_followed| {
            retries.again(fault, Attempts { count, unanswered: None, is_followed })
        };
        assert!(again(&busy(5), 1, false).is_some_and(|wait| wait >= Duration::from_secs(5)));
        assert_eq!(again(&busy(5), 1, true), None);
        for soon in [busy(0), Fault::transient("reset")] {
            assert!(again(&soon, 1, true).is_some());
            assert_eq!(again(&soon, 2, true), None);
            assert!(again(&soon, 2, false).is_some());
        }
        assert_eq!(again(&busy(5), retries.attempts, false), None);
        assert_eq!(again(&Fault::NotFound(String::new()), 1, false), None);
    }

    #[test]
    fn an_unreachable_host_gets_fewer_attempts_until_it_has_answered() {
        let unreachable = Unreachable { attempts: 3, duration: Duration::from_secs(120) };
        let retries = Retries { unreachable, ..Retries::default() };
        let may_retry = |fault: &Fault, count, spent: Option<u64>| {
            let unanswered = spent.map(Duration::from_secs);
            retries.again(fault, Attempts { count, unanswered, is_followed: false }).is_some()
        };
        let fault = Fault::Unreachable("refused".into());
        for (count, spent, allowed) in [
            (2, Some(0), true),
            (3, Some(0), false),
            (3, None, true),
            (6, None, false),
            // The next attempt is expected to end after 90 s and after 135 s.
            (1, Some(45), true),
            (2, Some(90), false),
        ] {
            assert_eq!(may_retry(&fault, count, spent), allowed, "{count} {spent:?}");
        }
        assert!(may_retry(&Fault::transient("reset"), 3, Some(90)));
    }

    #[test]
    fn waits_are_jittered() {
        let retries = Retries::default();
        let waits: std::collections::HashSet<_> = (0..20).map(|_| retries.wait(5, None)).collect();
        assert!(waits.len() > 10);
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = "1994-11-06T08:49:30Z".parse().unwrap();
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, value.parse().unwrap());
            retry_after(&headers, now)
        };
        assert_eq!(after("12"), Some(Duration::from_secs(12)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
    }
}
