//! Errors of requests to the daemon.

use std::path::PathBuf;

use serde::Deserialize;

use larder_model::class::Class;
use larder_model::escape::escape_to;

/// Maximum length of a daemon's message, characters.
const MAX_MESSAGE: usize = 8192;

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be set up.
    #[error("setting up the client: {reason}")]
    Setup {
        /// The cause of the failure.
        reason: String,
    },
    /// No daemon answers at the address.
    #[error(
        "no daemon answers at {address}: {reason}; check that `larder serve` is running there, or set --host or LARDER_HOST"
    )]
    Unreachable {
        /// Address of the request.
        address: String,
        /// The cause of the failure.
        reason: String,
    },
    /// The user has no access to the socket.
    #[error(
        "using {}: permission denied; only root and the group api.socket_group have access, use TCP and a credential instead",
        socket.display()
    )]
    NotAdmitted {
        /// Path of the socket.
        socket: PathBuf,
    },
    /// The answer is not from a daemon of a compatible version.
    #[error("the answer of {address} is not from a Larder daemon: {reason}")]
    Malformed {
        /// Address of the request.
        address: String,
        /// The defect of the answer.
        reason: String,
    },
    /// The answer lacks a field that this version needs.
    #[error(
        "the answer of {address} does not match this version of larder: {reason}; use the version of the daemon"
    )]
    Incompatible {
        /// Address of the request.
        address: String,
        /// The defect of the answer.
        reason: String,
    },
    /// The body to send cannot be read.
    #[error("{message}")]
    Body {
        /// The class of the error.
        class: Class,
        /// A description of the error.
        message: String,
    },
    /// The daemon refused the request.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// An answer with an unsuccessful status.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({status}{}{})", part(" ", code), part(", request ", request_id))]
pub struct Refusal {
    /// The HTTP status of the answer.
    pub status: u16,
    /// The daemon's error code.
    pub code: Option<String>,
    /// The message of the daemon.
    pub message: String,
    /// The request ID, under which the daemon's log has more details.
    pub request_id: Option<String>,
}

/// The fields of an error body that are shown. A proxy can answer without them.
#[derive(Debug, Default, Deserialize)]
struct ErrorBody {
    #[serde(rename = "errorMessage")]
    message: Option<String>,
    #[serde(rename = "errorCode")]
    code: Option<String>,
}

fn part(before: &str, text: &Option<String>) -> String {
    text.as_ref().map(|text| format!("{before}{text}")).unwrap_or_default()
}

impl Refusal {
    pub(super) fn of(
        status: u16,
        body: &[u8],
        request_id: Option<String>,
        retry_after: Option<String>,
    ) -> Self {
        let body: ErrorBody = serde_json::from_slice(body).unwrap_or_default();
        let text = |text: Option<String>| text.map(|text| escape_to(&text, MAX_MESSAGE));
        let mut message = text(body.message)
            .unwrap_or_else(|| "the daemon refused the request without a reason".to_owned());
        if status == 401 {
            message.push_str("; set LARDER_TOKEN, or LARDER_ACCESS_KEY and LARDER_SECRET_KEY");
        }
        if let Some(seconds) = retry_after {
            message.push_str(&format!("; try again in {} s", escape_to(&seconds, 20)));
        }
        let request_id = request_id.map(|id| escape_to(&id, 80));
        Refusal { status, code: text(body.code), message, request_id }
    }
}

impl Error {
    /// Returns the class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Setup { .. } => Class::Invalid,
            Error::Unreachable { .. } => Class::Transient,
            Error::NotAdmitted { .. } => Class::Denied,
            Error::Malformed { .. } | Error::Incompatible { .. } => Class::Internal,
            Error::Body { class, .. } => *class,
            Error::Refused(refusal) => match refusal.status {
                401 | 403 => Class::Denied,
                404 => Class::NotFound,
                409 => Class::Conflict,
                413 | 507 => Class::NoSpace,
                429 => Class::Busy,
                503 => Class::Transient,
                400..=499 => Class::Invalid,
                _ => Class::Internal,
            },
        }
    }

    /// Returns `true` if there is no daemon at the address.
    pub fn is_absent(&self) -> bool {
        matches!(self, Error::Unreachable { .. })
    }

    /// Returns `true` if the credential is valid, but does not allow the request.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Error::Refused(refusal) if refusal.status == 403)
    }

    /// Returns `true` if the daemon reports that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused(refusal) if refusal.status == 404)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_daemon_are_escaped() {
        let body = br#"{"errorCode":"CCE.01429101","errorMessage":"full\u001b[2J"}"#;
        let refusal = Refusal::of(429, body, Some("abc".into()), Some("30".into()));
        let error = Error::from(refusal);
        assert_eq!(error.to_string(), "full\\u{1b}[2J; try again in 30 s (429 CCE.01429101, request abc)");
        assert_eq!(error.class(), Class::Busy);
        let error = Error::from(Refusal::of(401, br#"{"errorMessage":"no"}"#, None, None));
        assert!(error.to_string().starts_with("no; set LARDER_TOKEN, or "), "{error}");
        let error = Error::from(Refusal::of(502, b"<html>", None, None));
        assert_eq!(error.to_string(), "the daemon refused the request without a reason (502)");
    }
}
