//! Sessions of people who signed in: in memory only, and without their secrets.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::api::pages::Proof;
use larder_model::digest::hex;
use larder_model::image_cache::TenantName;

/// Time after the last use at which a session ends.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// Time after the sign-in at which a session ends.
const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);
/// Maximum number of sessions of a tenant. A new one ends the one that was not used for the longest time.
const PER_TENANT: usize = 64;
/// Maximum number of sessions of all tenants.
const MOST: usize = 4096;

/// A secret of 256 random bits.
#[derive(Clone)]
pub(super) struct Secret256([u8; 32]);

impl fmt::Debug for Secret256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret256")
    }
}

impl Secret256 {
    /// Creates a random secret.
    ///
    /// # Panics
    /// Never in practice: the kernel always has random numbers after the boot.
    pub(super) fn random() -> Self {
        // Two random UUIDs have only 244 random bits, so three are hashed.
        let mut hash = Sha256::new();
        for _ in 0..3 {
            hash.update(uuid::Uuid::new_v4().as_bytes());
        }
        Secret256(hash.finalize().into())
    }

    /// Returns the text form: 64 hexadecimal digits.
    pub(super) fn text(&self) -> String {
        hex(&self.0)
    }

    /// Compares with a text form in constant time.
    pub(super) fn is(&self, text: &str) -> bool {
        self.text().as_bytes().ct_eq(text.as_bytes()).into()
    }
}

/// The hash by which a session is found. The cookie itself is not stored.
type Hash = [u8; 32];

/// The session of a tenant.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The tenant that signed in.
    pub(super) tenant: TenantName,
    /// The credential, which must still be valid.
    pub(super) proof: Proof,
    /// The token of the forms.
    pub(super) token: Secret256,
    since: Instant,
    used: Instant,
}

impl Session {
    fn has_ended(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) >= IDLE
            || now.saturating_duration_since(self.since) >= LONGEST
    }
}

/// The sessions of all tenants.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<Hash, Session>>);

impl Sessions {
    /// Starts a session and returns its cookie.
    pub(super) fn start(&self, tenant: &TenantName, proof: Proof, now: Instant) -> Secret256 {
        let cookie = Secret256::random();
        let token = Secret256::random();
        let mut all = self.all();
        all.retain(|_, session| !session.has_ended(now));
        if all.values().filter(|session| session.tenant == *tenant).count() >= PER_TENANT {
            end_oldest(&mut all, |session| session.tenant == *tenant);
        }
        if all.len() >= MOST {
            end_oldest(&mut all, |_| true);
        }
        let session = Session { tenant: tenant.clone(), proof, token, since: now, used: now };
        all.insert(hash(&cookie.text()), session);
        cookie
    }

    /// Returns the session of a cookie. `is_use` extends it.
    pub(super) fn find(&self, cookie: &str, now: Instant, is_use: bool) -> Option<Session> {
        let mut all = self.all();
        let key = hash(cookie);
        let session = all.get_mut(&key)?;
        if session.has_ended(now) {
            all.remove(&key);
            return None;
        }
        if is_use {
            session.used = now;
        }
        Some(session.clone())
    }

    /// Ends the session of a cookie.
    pub(super) fn end(&self, cookie: &str) {
        self.all().remove(&hash(cookie));
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Hash, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn end_oldest(all: &mut HashMap<Hash, Session>, of: impl Fn(&Session) -> bool) {
    let oldest = all.iter().filter(|(_, session)| of(session)).min_by_key(|(_, session)| session.used);
    if let Some(key) = oldest.map(|(key, _)| *key) {
        all.remove(&key);
    }
}

fn hash(cookie: &str) -> Hash {
    Sha256::digest(cookie).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::credential::Secret;

    fn start(sessions: &Sessions, tenant: &str, now: Instant) -> String {
        let proof = Proof::of_token(&Secret::new("token"));
        sessions.start(&tenant.parse().unwrap(), proof, now).text()
    }

    #[test]
    fn a_session_ends_without_use_and_after_a_day_of_work() {
        let (sessions, start_at) = (Sessions::default(), Instant::now());
        let after = |seconds: u64| start_at + Duration::from_secs(seconds);
        let cookie = start(&sessions, "a", start_at);
        assert_eq!(cookie.len(), 64);
        assert_ne!(cookie, start(&sessions, "a", start_at));
        assert!(sessions.find("", start_at, true).is_none());
        assert!(sessions.find(&cookie, after(3599), true).is_some());
        assert!(sessions.find(&cookie, after(3599 + 3599), false).is_some());
        assert!(sessions.find(&cookie, after(3599 + 3600), true).is_none(), "the last was not a use");
        let cookie = start(&sessions, "a", start_at);
        for hour in 0..16 {
            assert!(sessions.find(&cookie, after(hour * 1799), true).is_some());
        }
        assert!(sessions.find(&cookie, after(8 * 3600), true).is_none());
        let cookie = start(&sessions, "a", start_at);
        sessions.end(&cookie);
        assert!(sessions.find(&cookie, start_at, true).is_none());
    }

    #[test]
    fn the_number_is_bounded_and_other_tenants_stay() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let other = start(&sessions, "b", now);
        let first = start(&sessions, "a", now);
        for more in 0..PER_TENANT as u64 {
            start(&sessions, "a", now + Duration::from_secs(more + 1));
        }
        assert!(sessions.find(&first, now, true).is_none());
        assert!(sessions.find(&other, now, true).is_some());
        assert_eq!(sessions.all().len(), PER_TENANT + 1);
    }

    #[test]
    fn the_cookie_is_not_stored_and_not_printed() {
        let sessions = Sessions::default();
        let cookie = start(&sessions, "a", Instant::now());
        let token = sessions.find(&cookie, Instant::now(), true).unwrap().token;
        let debug = format!("{sessions:?}");
        assert!(!debug.contains(&cookie) && !debug.contains(&token.text()), "{debug}");
        assert!(token.is(&token.text()) && !token.is(&cookie) && !token.is(""));
    }
}
