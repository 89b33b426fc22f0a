//! Registry credentials that never print their secret.

use std::fmt;

/// A string that prints as `[redacted]`. Only [`expose`](Secret::expose) returns its content.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a string as a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    /// Returns the secret itself. Only code that sends or stores it may call this.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A credential for a registry that requires authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user name and password (RFC 7617), which are also sent to the token endpoint.
    Basic {
        /// User name.
        username: String,
        /// Password or personal token.
        password: Secret,
    },
    /// An OAuth2 refresh token (`identitytoken` of a docker config).
    IdentityToken(Secret),
}
