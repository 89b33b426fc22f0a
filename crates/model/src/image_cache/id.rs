//! IDs of image caches.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A random UUID (RFC 9562, version 4), chosen by the daemon. The text form is lower case with hyphens, so it
/// is safe as a file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CacheId(Uuid);

/// The error for a string that is not the ID of an image cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the ID of an image cache: want a UUID")]
pub struct ParseIdError;

impl CacheId {
    /// Creates a new random ID.
    pub fn random() -> Self {
        CacheId(Uuid::new_v4())
    }
}

impl FromStr for CacheId {
    type Err = ParseIdError;

    /// Accepts only the form that [`Display`](fmt::Display) writes, so that each cache has exactly one
    /// address.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let id = CacheId(Uuid::try_parse(s).map_err(|_| ParseIdError)?);
        if id.to_string() == s { Ok(id) } else { Err(ParseIdError) }
    }
}

impl fmt::Display for CacheId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_form_is_accepted() {
        let id = CacheId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        let upper = id.to_string().to_uppercase();
        for bad in ["", "x", upper.as_str(), &id.to_string().replace('-', ""), "../../etc/passwd"] {
            assert_eq!(bad.parse::<CacheId>(), Err(ParseIdError), "{bad}");
        }
    }
}
