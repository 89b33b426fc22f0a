//! When to try again: full jitter (a random wait up to a bound that doubles), and what the server asks for.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::Fault;

/// How often and how patiently a request is tried again.
#[derive(Clone, Debug)]
pub struct Retries {
    /// Tries without any progress before the request fails; at least 1.
    pub attempts: u32,
    /// Bound of the first wait; doubles with each try.
    pub base: Duration,
    /// Bound of every wait.
    pub cap: Duration,
    /// The longest Retry-After that is honoured.
    pub retry_after_cap: Duration,
}

impl Default for Retries {
    /// 6 tries, waits up to 0.25 s doubling up to 30 s, Retry-After up to 2 minutes.
    fn default() -> Self {
        Retries {
            attempts: 6,
            base: Duration::from_millis(250),
            cap: Duration::from_secs(30),
            retry_after_cap: Duration::from_secs(120),
        }
    }
}

impl Retries {
    /// Whether a fault at try `attempt` is worth another one at the same host, and how long that waits at least. `followed` if
    /// another host comes after it: patience is better spent there, and none at all if this one asks to be left alone.
    pub(crate) fn again(&self, fault: &Fault, attempt: u32, followed: bool) -> Option<Duration> {
        let asked = fault.retry()?;
        let attempts = if followed { self.attempts.min(2) } else { self.attempts };
        let is_sent_away = followed && asked.is_some_and(|wait| !wait.is_zero());
        (attempt < attempts && !is_sent_away).then(|| self.wait(attempt, asked))
    }

    /// The wait before try `attempt` + 1 (`attempt` from 1), at least what the server asked for.
    fn wait(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let factor = 1u32 << attempt.saturating_sub(1).min(16);
        let bound = self.base.saturating_mul(factor).min(self.cap);
        let wait = bound.mul_f64(fraction());
        match asked {
            // A little jitter on top, or all clients that were told the same second come back in it.
            Some(asked) => asked.min(self.retry_after_cap) + wait.min(Duration::from_secs(1)),
            None => wait,
        }
    }
}

/// Whether a later try may get another status.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    // 501 and 505 say that the server never will; proxies have statuses of their own above 504.
    matches!(status.as_u16(), 408 | 429) || status.is_server_error() && !matches!(status.as_u16(), 501 | 505)
}

/// A random number in 0..1; std seeds every `RandomState` differently, which is random enough for jitter.
fn fraction() -> f64 {
    let random = RandomState::new().hash_one(0u8) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64")]
    let fraction = random as f64 / (1u64 << 53) as f64;
    fraction
}

/// What Retry-After asks for: seconds or an HTTP date (RFC 9110, 10.2.3).
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
        assert!(retries.again(&busy(5), 1, false).is_some_and(|wait| wait >= Duration::from_secs(5)));
        assert_eq!(retries.again(&busy(5), 1, true), None);
        for soon in [busy(0), Fault::transient("reset")] {
            assert!(retries.again(&soon, 1, true).is_some());
            assert_eq!(retries.again(&soon, 2, true), None);
            assert!(retries.again(&soon, 2, false).is_some());
        }
        assert_eq!(retries.again(&busy(5), retries.attempts, false), None);
        assert_eq!(retries.again(&Fault::NotFound(String::new()), 1, false), None);
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
