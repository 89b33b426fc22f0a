//! What can go wrong between here and a registry, in words that hold no secret and no signed URL.

use std::fmt;
use std::time::Duration;

use super::pace::MinRate;
use larder_model::class::Class;

/// Characters of foreign text that a message shows.
const SHOWN: usize = 300;

/// A failed operation of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request, after all its retries and all hosts that may answer it.
    #[error("{what} from {host}: {fault}")]
    Request {
        /// What was being done, with the name of the image: `reading manifest r.io/team/app:1`.
        what: String,
        /// The host that gave the deciding answer.
        host: String,
        /// Why it failed.
        fault: Fault,
    },
    /// The client could not be made as configured.
    #[error("setting up connections to registries: {0}")]
    Setup(String),
}

impl Error {
    /// The class, from which retry and exit code follow.
    pub fn class(&self) -> Class {
        match self {
            Error::Request { fault, .. } => fault.class(),
            Error::Setup(_) => Class::Invalid,
        }
    }
}

/// Why one request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// 401 or 403, after every credential and anonymous access.
    #[error("access denied ({reason}); {searched}")]
    Denied {
        /// What the registry said.
        reason: String,
        /// Which credentials there were.
        searched: Searched,
    },
    /// 404: no such repository, tag or blob.
    #[error("not found ({0}); check the name, the tag and whether the image was deleted")]
    NotFound(String),
    /// The name service says that there is no such host.
    #[error("there is no host {0:?}; check the name of the registry")]
    UnknownHost(String),
    /// 408, 429, 5xx, a lost connection, a stall, a body that ended early.
    #[error("{reason}; try again later")]
    Transient {
        /// What happened.
        reason: String,
        /// How long the server asked to wait.
        wait: Option<Duration>,
    },
    /// Too few bytes in a window of time: another source may be faster, a later try too.
    #[error(
        "it sent {bytes} bytes in {} s, and a build must get {} in {} s of each layer; it is slow now, try again later",
        waited.as_secs(), least.bytes, least.window.as_secs()
    )]
    Slow {
        /// Bytes that came.
        bytes: u64,
        /// How long the client waited for them.
        waited: Duration,
        /// What would have been enough.
        least: MinRate,
    },
    /// Ranges of the blob cannot be had: 416, or a Content-Range that is not what was asked for.
    #[error("{0}; the registry or a proxy before it mishandles Range")]
    Range(String),
    /// Content is not what was asked for.
    #[error("{0}")]
    Corrupt(String),
    /// A redirect, realm or address that a registry may not send a client to (facts of CVE-2020-15157, CVE-2026-48978).
    #[error("refused: {0}")]
    Refused(String),
    /// The request itself, the trust in the server's certificate or a credential helper.
    #[error("{0}")]
    Invalid(String),
}

impl Fault {
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Fault::Transient { reason: reason.into(), wait: None }
    }

    /// The class of the fault.
    pub fn class(&self) -> Class {
        match self {
            Fault::Denied { .. } => Class::Denied,
            Fault::NotFound(_) | Fault::UnknownHost(_) => Class::NotFound,
            Fault::Transient { .. } | Fault::Slow { .. } => Class::Transient,
            Fault::Range(_) | Fault::Corrupt(_) | Fault::Refused(_) => Class::Corrupt,
            Fault::Invalid(_) => Class::Invalid,
        }
    }

    /// How long to wait at least, if another try may heal it.
    pub(crate) fn retry(&self) -> Option<Option<Duration>> {
        match self {
            Fault::Transient { wait, .. } => Some(*wait),
            Fault::Range(_) => Some(None),
            _ => None,
        }
    }
}

/// Which credentials stood behind a denial. Never says what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Searched {
    /// The registry named no way to authenticate, so none were looked up.
    NotAsked,
    /// So many credentials matched host and repository; all were tried, and anonymous access.
    Tried(usize),
    /// Credentials had worked before.
    Accepted,
}

impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Searched::NotAsked => f.write_str("it names no way to authenticate, so no credentials were sent"),
            Searched::Tried(0) => {
                f.write_str("no credentials were found for it: give a pull secret or a docker config")
            }
            Searched::Tried(1) => f.write_str("the credentials found for it were refused: check them"),
            Searched::Tried(n) => write!(f, "all {n} credentials found for it were refused: check them"),
            Searched::Accepted => {
                f.write_str("the credentials were accepted before: they lack the right to pull this")
            }
        }
    }
}

/// Credentials could not be looked up, for example because a helper failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("looking up credentials for {registry}: {reason}")]
pub struct CredentialsError {
    /// The registry host asked for.
    pub registry: String,
    /// What failed; never holds a credential.
    pub reason: String,
}

/// `text` from outside with control characters escaped, cut to a sane length.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).flat_map(escape).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn escape(c: char) -> Vec<char> {
    if c.is_control()
        || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    {
        c.escape_default().collect()
    } else {
        vec![c]
    }
}

/// `url` without user name, password, query and fragment: a signed URL is a credential.
pub(crate) fn clean_url(url: &reqwest::Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that cannot have user names, which then have none to hide.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    printable(url.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_secrets() {
        let url = "https://user:pw@cdn.io/a/b?X-Signature=abc#f".parse().unwrap();
        assert_eq!(clean_url(&url), "https://cdn.io/a/b");
    }

    #[test]
    fn foreign_text_is_escaped_and_cut() {
        assert_eq!(printable("a\n\x1b[31m"), "a\\n\\u{1b}[31m");
        assert_eq!(printable(&"x".repeat(400)).chars().count(), SHOWN + 1);
    }
}
