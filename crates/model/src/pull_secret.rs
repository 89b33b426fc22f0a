//! Names of pull secrets, `namespace:name`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a pull secret by Kubernetes' rules (RFC 1123 label and subdomain), so both parts are safe as
/// file names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PullSecretName {
    namespace: String,
    name: String,
}

/// The error for a string that is not `namespace:name`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a pull secret: want namespace:name in lower-case letters, digits, '-' (and '.' in the name)"
)]
pub struct ParsePullSecretError(String);

impl PullSecretName {
    /// Returns the namespace of the secret.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the name of the secret in its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Reports whether `s` is an RFC 1123 label: 1 to 63 characters of a-z 0-9 '-', alphanumeric at both ends.
fn is_label(s: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    s.len() <= 63
        && edge(s.bytes().next())
        && edge(s.bytes().next_back())
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl FromStr for PullSecretName {
    type Err = ParsePullSecretError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = || ParsePullSecretError(s.chars().take(320).collect());
        let (namespace, name) = s.split_once(':').ok_or_else(refuse)?;
        if !is_label(namespace) || name.len() > 253 || !name.split('.').all(is_label) {
            return Err(refuse());
        }
        Ok(PullSecretName { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

impl TryFrom<String> for PullSecretName {
    type Error = ParsePullSecretError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<PullSecretName> for String {
    fn from(name: PullSecretName) -> String {
        name.to_string()
    }
}

impl fmt::Display for PullSecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.namespace, self.name)
    }
}

/// Returns a note for the message of an image that is denied or not found, if pull secrets gave no credential
/// for it. Every caller must use this text, so that unknown, forbidden and malformed secrets cannot be
/// distinguished.
pub fn no_credential_in(secrets: &[impl fmt::Display]) -> String {
    let secrets: Vec<String> = secrets.iter().map(ToString::to_string).collect();
    format!(" (no credential was found in the pull secret {})", secrets.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_names() {
        let secret: PullSecretName = "team-a:reg.cred".parse().unwrap();
        assert_eq!((secret.namespace(), secret.name()), ("team-a", "reg.cred"));
        for bad in ["", "a", ":", "a:", ":b", "A:b", "a/b:c", "..:x", "a:..", "a:-b", "a:b:c", "a.b:c"] {
            assert!(bad.parse::<PullSecretName>().is_err(), "{bad}");
        }
    }
}
