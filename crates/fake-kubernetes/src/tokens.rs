//! Authentication with bearer tokens.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::status::Refusal;

/// Tokens and their users.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    tokens: HashMap<String, String>,
    used: Mutex<HashSet<String>>,
    issued: u32,
}

impl Tokens {
    /// Issues a new token for a user. Older tokens remain valid.
    pub(super) fn issue(&mut self, user: &str) -> String {
        self.issued += 1;
        let token = format!("token-{}-{}", self.issued, uuid::Uuid::new_v4());
        self.tokens.insert(token.clone(), user.to_owned());
        token
    }

    pub(super) fn revoke(&mut self, token: &str) {
        self.tokens.remove(token);
    }

    /// Reports whether a token has been used.
    pub(super) fn was_used(&self, token: &str) -> bool {
        self.used().contains(token)
    }

    fn used(&self) -> MutexGuard<'_, HashSet<String>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the user of an Authorization header. An unknown token is 401; without a header the user is
    /// `system:anonymous`.
    pub(super) fn user(&self, authorization: Option<&str>) -> Result<String, Refusal> {
        let Some(given) = authorization else { return Ok("system:anonymous".to_owned()) };
        let token = given.strip_prefix("Bearer ").map_or("", str::trim);
        let user = self.tokens.get(token).cloned().ok_or_else(Refusal::unauthorized)?;
        self.used().insert(token.to_owned());
        Ok(user)
    }
}
