//! Names of image caches and of tenants.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Name of an image cache: 1 to 128 characters of a-z 0-9 '-', starts with a letter, does not end with '-'.
/// Unique in a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CacheName(String);

/// Name of a tenant: an RFC 1123 label, so that it can be a file name and a Kubernetes namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(String);

/// The error for a string that is not a valid name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    /// The string is not the name of an image cache.
    #[error("want 1 to 128 characters of a-z 0-9 '-', starting with a letter and not ending with '-'")]
    Cache,
    /// The string is not the name of a tenant.
    #[error("want 1 to 63 characters of a-z 0-9 '-', starting and ending with a letter or digit")]
    Tenant,
}

impl CacheName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TenantName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn plain(s: &str) -> bool {
    s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl FromStr for CacheName {
    type Err = ParseNameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let starts = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let fits = starts && s.len() <= 128 && plain(s) && !s.ends_with('-');
        if fits { Ok(CacheName(s.to_owned())) } else { Err(ParseNameError::Cache) }
    }
}

impl FromStr for TenantName {
    type Err = ParseNameError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let fits = !s.is_empty() && s.len() <= 63 && plain(s) && !s.starts_with('-') && !s.ends_with('-');
        if fits { Ok(TenantName(s.to_owned())) } else { Err(ParseNameError::Tenant) }
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = ParseNameError;

            fn try_from(s: String) -> Result<Self, Self::Error> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_form!(CacheName);
text_form!(TenantName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches() {
        let longest = "a".repeat(128);
        for good in ["a", "web-1", "a--b", &longest] {
            assert_eq!(good.parse::<CacheName>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(129);
        for bad in ["", "1a", "-a", "a-", "A", "a_b", "a.b", "a b", "é", "a\n", &longer] {
            assert_eq!(bad.parse::<CacheName>(), Err(ParseNameError::Cache), "{bad}");
        }
    }

    #[test]
    fn tenants() {
        for good in ["a", "1", "team-a"] {
            assert_eq!(good.parse::<TenantName>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(64);
        for bad in ["", "-a", "a-", "a/b", "..", "A", &longer] {
            assert_eq!(bad.parse::<TenantName>(), Err(ParseNameError::Tenant), "{bad}");
        }
    }
}
