//! Why the daemon does not answer, or not as hoped.

use std::path::PathBuf;

use serde_json::Value;

use larder_model::class::Class;
use larder_model::escape::escape_to;

/// Longest message of a daemon that is repeated, characters.
const LONGEST: usize = 8192;

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be set up.
    #[error("setting up the client: {reason}")]
    Setup {
        /// Why.
        reason: String,
    },
    /// Nobody answers.
    #[error(
        "no daemon answers at {address}: {reason}; is `larder serve` running there? --host or LARDER_HOST says where"
    )]
    Unreachable {
        /// Where it was sought.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The socket is not for this user.
    #[error(
        "using {}: permission denied; root and the group that api.socket_group names may, others need TCP and a credential",
        socket.display()
    )]
    NotAdmitted {
        /// The socket.
        socket: PathBuf,
    },
    /// Something answers that is no daemon of this version.
    #[error("{address} does not answer like a larder: {reason}")]
    Malformed {
        /// Who answered.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was to be sent cannot be read.
    #[error("{message}")]
    Body {
        /// The class of the fault.
        class: Class,
        /// What is wrong.
        message: String,
    },
    /// The daemon refuses.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// An answer that is no success.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({status}{}{})", part(" ", code), part(", request ", request_id))]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The daemon's code of the error.
    pub code: Option<String>,
    /// What it says.
    pub message: String,
    /// The ID under which its log has more.
    pub request_id: Option<String>,
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
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| Some(escape_to(json.get(key)?.as_str()?, LONGEST));
        let mut message =
            text("errorMessage").unwrap_or_else(|| "the daemon refuses and does not say why".to_owned());
        if let Some(seconds) = retry_after {
            message.push_str(&format!("; try again in {} s", escape_to(&seconds, 20)));
        }
        let request_id = request_id.map(|id| escape_to(&id, 80));
        Refusal { status, code: text("errorCode"), message, request_id }
    }
}

impl Error {
    /// The class that decides the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Setup { .. } => Class::Invalid,
            Error::Unreachable { .. } => Class::Transient,
            Error::NotAdmitted { .. } => Class::Denied,
            Error::Malformed { .. } => Class::Internal,
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

    /// Whether the daemon says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused(refusal) if refusal.status == 404)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_daemon_says_is_repeated_safely() {
        let body = br#"{"errorCode":"CCE.01429101","errorMessage":"full\u001b[2J"}"#;
        let refusal = Refusal::of(429, body, Some("abc".into()), Some("30".into()));
        let error = Error::from(refusal);
        assert_eq!(error.to_string(), "full\\u{1b}[2J; try again in 30 s (429 CCE.01429101, request abc)");
        assert_eq!(error.class(), Class::Busy);
        let error = Error::from(Refusal::of(502, b"<html>", None, None));
        assert_eq!(error.to_string(), "the daemon refuses and does not say why (502)");
    }
}
