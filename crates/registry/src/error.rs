//! Errors of the registry client. Their texts contain no secret and no signed URL.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::min_rate::Slow;
use larder_model::class::Class;
use larder_model::event::Explanation;

/// Maximum number of characters of foreign text in a message.
const MAX_SHOWN_CHARS: usize = 300;

/// A failed operation of the registry client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request failed after all retries, on every host that can serve it.
    #[error("{what} from {host}: {fault}{}", MirrorList(tried))]
    Request {
        /// Operation, with the name of the image: `reading manifest r.io/team/app:1`.
        what: String,
        /// Host whose response decided the outcome.
        host: String,
        /// Reason of the failure.
        fault: Fault,
        /// Mirrors that failed before.
        tried: Vec<FailedMirror>,
    },
    /// The client could not be created from its configuration.
    #[error("setting up connections to registries: {0}")]
    Setup(String),
}

/// A mirror that did not serve a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host}: {fault}")]
pub struct FailedMirror {
    /// Host of the mirror.
    pub host: String,
    /// Reason of the failure.
    pub fault: Fault,
}

/// The mirrors at the end of a message.
struct MirrorList<'a>(&'a [FailedMirror]);

impl fmt::Display for MirrorList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|mirror| write!(f, "; mirror {mirror}"))
    }
}

impl Error {
    pub(crate) fn request(what: String, host: &str, fault: Fault) -> Self {
        Error::Request { what, host: host.to_owned(), fault, tried: Vec::new() }
    }

    /// Returns the parts of the message. The caller adds the operation.
    pub fn explanation(&self) -> Explanation {
        match self {
            Error::Request { host, fault, tried, .. } => Explanation {
                host: Some(host.clone()),
                reason: format!("{host}: {}", fault.reason()),
                hint: fault.hint().map(Cow::into_owned),
                mirrors: tried
                    .iter()
                    .map(|mirror| format!("{}: {}", mirror.host, mirror.fault.reason()))
                    .collect(),
                ..Explanation::default()
            },
            Error::Setup(_) => Explanation { reason: self.to_string(), ..Explanation::default() },
        }
    }

    /// Returns the class of the error, which determines retries and the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Request { fault, .. } => fault.class(),
            Error::Setup(_) => Class::Invalid,
        }
    }
}

/// Reason why one request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 401 or 403 after every credential and anonymous access.
    Denied {
        /// Response of the registry.
        reason: String,
        /// Credentials that were tried.
        searched: CredentialSearch,
    },
    /// 404: no such repository, tag or blob.
    NotFound(String),
    /// 404 for a tag of a repository that has similar tags.
    NoTag {
        /// Response of the registry.
        answer: String,
        /// Similar tags, the most similar first.
        similar: Box<[String]>,
    },
    /// The name service reports that the host does not exist.
    UnknownHost(String),
    /// No connection, or no response on it: a refused connection, a failed name lookup, a server that accepts
    /// and does not answer.
    Unreachable(String),
    /// 408, 429, 5xx, a lost connection, a stall, a body that ended early.
    Transient {
        /// Description of the failure.
        reason: String,
        /// Wait that the server requested.
        wait: Option<Duration>,
    },
    /// The source is slower than the minimum rate.
    Slow(Slow),
    /// The server's certificate is not trusted, for this reason.
    Untrusted(String),
    /// The server does not support TLS.
    NoTls,
    /// The blob cannot be read by range: 416, or a Content-Range other than the requested one.
    Range(String),
    /// The content differs from the requested content.
    Corrupt(String),
    /// A redirect, realm or address to which a registry must not send a client (facts of CVE-2020-15157,
    /// CVE-2026-48978).
    Refused(String),
    /// The request or a credential helper is invalid.
    Invalid(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason())?;
        self.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl std::error::Error for Fault {}

impl From<Slow> for Fault {
    fn from(slow: Slow) -> Self {
        Fault::Slow(slow)
    }
}

impl Fault {
    pub(crate) fn transient(reason: impl Into<String>) -> Self {
        Fault::Transient { reason: reason.into(), wait: None }
    }

    /// Returns the reason, without a remedy.
    pub fn reason(&self) -> String {
        match self {
            Fault::Denied { reason, searched } => format!("access denied ({reason}); {searched}"),
            Fault::NotFound(answer) | Fault::NoTag { answer, .. } => format!("not found ({answer})"),
            Fault::UnknownHost(host) => format!("host {host:?} does not exist"),
            Fault::Slow(slow) => slow.to_string(),
            Fault::Untrusted(why) => format!("the server's certificate is not trusted ({why})"),
            Fault::NoTls => "the server does not support TLS".to_owned(),
            Fault::Range(found) => {
                format!("{found}; the registry or a proxy in front of it does not handle Range correctly")
            }
            Fault::Refused(why) => format!("refused: {why}"),
            Fault::Unreachable(reason)
            | Fault::Transient { reason, .. }
            | Fault::Corrupt(reason)
            | Fault::Invalid(reason) => reason.clone(),
        }
    }

    /// Returns the remedy, if there is one.
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Fault::NoTag { similar, .. } => Some(did_you_mean(similar).into()),
            other => other.fixed_hint().map(Cow::Borrowed),
        }
    }

    fn fixed_hint(&self) -> Option<&'static str> {
        match self {
            Fault::Denied { searched, .. } => searched.hint(),
            Fault::NotFound(_) | Fault::NoTag { .. } => {
                Some("check the name, the tag and whether the image was deleted")
            }
            Fault::UnknownHost(_) => Some("check the name of the registry"),
            Fault::Unreachable(_) => {
                Some("check the name of the registry and whether it runs, or try again later")
            }
            Fault::Transient { .. } | Fault::Slow(_) => Some("try again later"),
            Fault::Untrusted(_) => Some("trust its CA with --ca or registry.host.ca"),
            Fault::NoTls => Some("for plain HTTP, use --tls-verify=false or registry.host.plain_http = true"),
            Fault::Range(_) | Fault::Corrupt(_) | Fault::Refused(_) | Fault::Invalid(_) => None,
        }
    }

    /// Returns the class of the fault.
    pub fn class(&self) -> Class {
        match self {
            Fault::Denied { .. } => Class::Denied,
            Fault::NotFound(_) | Fault::NoTag { .. } | Fault::UnknownHost(_) => Class::NotFound,
            Fault::Unreachable(_) | Fault::Transient { .. } | Fault::Slow(_) => Class::Transient,
            Fault::Range(_) | Fault::Corrupt(_) | Fault::Refused(_) => Class::Corrupt,
            Fault::Untrusted(_) | Fault::NoTls | Fault::Invalid(_) => Class::Invalid,
        }
    }

    /// Returns the minimum wait before the next attempt, or `None` if a retry cannot help.
    pub(crate) fn retry(&self) -> Option<Option<Duration>> {
        match self {
            Fault::Transient { wait, .. } => Some(*wait),
            Fault::Unreachable(_) | Fault::Range(_) => Some(None),
            _ => None,
        }
    }
}

fn did_you_mean(tags: &[String]) -> String {
    match tags {
        [tags @ .., last] if !tags.is_empty() => {
            format!("did you mean one of the tags {} and {last}?", tags.join(", "))
        }
        tags => format!("did you mean the tag {}?", tags.concat()),
    }
}

/// Result of the search for credentials before a denial. Never contains their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialSearch {
    /// The registry named no authentication scheme, so no credentials were looked up.
    NoChallenge,
    /// Number of credentials that matched host and repository. All of them and anonymous access were tried.
    Tried(usize),
    /// The credentials had worked before.
    Accepted,
}

impl CredentialSearch {
    fn hint(self) -> Option<&'static str> {
        match self {
            CredentialSearch::Tried(0) => {
                Some("provide a pull secret, or credentials with --authfile or --creds")
            }
            CredentialSearch::Tried(_) => Some("check the credentials"),
            CredentialSearch::NoChallenge | CredentialSearch::Accepted => None,
        }
    }
}

impl fmt::Display for CredentialSearch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CredentialSearch::NoChallenge => {
                f.write_str("it offered no authentication scheme, so no credentials were sent")
            }
            CredentialSearch::Tried(0) => f.write_str("no credentials were found for it"),
            CredentialSearch::Tried(1) => f.write_str("the credentials found for it were refused"),
            CredentialSearch::Tried(n) => write!(f, "all {n} credentials found for it were refused"),
            CredentialSearch::Accepted => {
                f.write_str("the credentials are valid but do not allow pulling this repository")
            }
        }
    }
}

/// The credential lookup failed, for example because a helper failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("looking up credentials for {registry}: {reason}")]
pub struct CredentialsError {
    /// Registry host of the lookup.
    pub registry: String,
    /// Reason of the failure; never contains a credential.
    pub reason: String,
}

/// Escapes the control characters of foreign text and truncates it.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).flat_map(escape).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
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

/// Returns `url` without user name, password, query and fragment, because a signed URL is a credential.
pub(crate) fn clean_url(url: &reqwest::Url) -> String {
    let mut url = url.clone();
    // Both calls fail only for URLs that cannot have a user name, so there is none to hide.
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
        assert_eq!(printable(&"x".repeat(400)).chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
