//! A user name and a secret for a registry, which never shows the secret.

use std::fmt;

/// A string that prints as `[redacted]`. The bytes are reached only by [`expose`](Secret::expose).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What to say to a registry that asks who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// User name and password (RFC 7617), also what the token endpoint gets.
    Basic {
        /// User name.
        username: String,
        /// Password or personal token.
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken` of a docker config).
    IdentityToken(Secret),
}
