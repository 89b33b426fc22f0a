//! Maps errors to status, code and log level, and defines the error body.
//!
//! The vendor has two error formats, and each of its SDKs reads one of them, so a body contains both.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::Level;
use utoipa::ToSchema;

use crate::caches::error::Error;
use crate::caches::store::StoreError;
use larder_model::class::Class;
use larder_model::signature::ALGORITHM;

/// Maximum length of an error message, characters.
const MAX_MESSAGE: usize = 4096;

/// The message of an internal error. The reason is only logged.
const INTERNAL_MESSAGE: &str = "the daemon failed; its log has the reason under this X-Request-Id";

/// A stable error code. Codes that end in 001 are the vendor's for the status; codes from 101 on are
/// Larder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A field, a header or the query is malformed or outside its limits.
    Invalid,
    /// `building_config.cluster` is not one of the configured clusters.
    UnknownCluster,
    /// A dry run could not resolve the images.
    Unresolvable,
    /// The `Idempotency-Key` was used for another request.
    KeyReused,
    /// No credential, or one that is not valid.
    Unauthenticated,
    /// The credential is valid and does not allow this.
    Forbidden,
    /// The tenant has reached its maximum number of image caches or its space limit.
    Quota,
    /// The tenant has no such image cache.
    NotFound,
    /// The API has no such path.
    NoRoute,
    /// The path has no such method.
    Method,
    /// The tenant has an image cache of that name.
    NameTaken,
    /// The image cache is in a state in which this cannot be done.
    State,
    /// The body exceeds its maximum size.
    TooLarge,
    /// The body of a POST is not `application/json`.
    MediaType,
    /// The tenant exceeds its limit of requests or streams.
    TooMany,
    /// The queue of builds is full.
    QueueFull,
    /// An internal error of the daemon.
    Internal,
    /// The daemon is starting or stopping, or cannot reach a dependency.
    Unavailable,
    /// There is not enough space on this host.
    NoSpace,
}

impl Code {
    /// All codes, in order of status.
    pub const ALL: [Code; 19] = [
        Code::Invalid,
        Code::UnknownCluster,
        Code::Unresolvable,
        Code::KeyReused,
        Code::Unauthenticated,
        Code::Forbidden,
        Code::Quota,
        Code::NotFound,
        Code::NoRoute,
        Code::Method,
        Code::NameTaken,
        Code::State,
        Code::TooLarge,
        Code::MediaType,
        Code::TooMany,
        Code::QueueFull,
        Code::Internal,
        Code::Unavailable,
        Code::NoSpace,
    ];

    /// Returns the status, the code's text and the log level.
    fn row(self) -> (StatusCode, &'static str, Level) {
        match self {
            Code::Invalid => (StatusCode::BAD_REQUEST, "CCE.01400001", Level::INFO),
            Code::UnknownCluster => (StatusCode::BAD_REQUEST, "CCE.01400101", Level::INFO),
            Code::Unresolvable => (StatusCode::BAD_REQUEST, "CCE.01400102", Level::INFO),
            Code::KeyReused => (StatusCode::BAD_REQUEST, "CCE.01400103", Level::INFO),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "CCE.01401001", Level::INFO),
            Code::Forbidden => (StatusCode::FORBIDDEN, "CCE.01403001", Level::INFO),
            Code::Quota => (StatusCode::FORBIDDEN, "CCE.01403101", Level::INFO),
            Code::NotFound => (StatusCode::NOT_FOUND, "CCE.01404001", Level::INFO),
            Code::NoRoute => (StatusCode::NOT_FOUND, "CCE.01404101", Level::INFO),
            Code::Method => (StatusCode::METHOD_NOT_ALLOWED, "CCE.01405001", Level::INFO),
            Code::NameTaken => (StatusCode::CONFLICT, "CCE.01409001", Level::INFO),
            Code::State => (StatusCode::CONFLICT, "CCE.01409101", Level::INFO),
            Code::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "CCE.01413001", Level::INFO),
            Code::MediaType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "CCE.01415001", Level::INFO),
            Code::TooMany => (StatusCode::TOO_MANY_REQUESTS, "CCE.01429001", Level::INFO),
            Code::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "CCE.01429101", Level::WARN),
            Code::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "CCE.01500001", Level::ERROR),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "CCE.01503001", Level::WARN),
            Code::NoSpace => (StatusCode::INSUFFICIENT_STORAGE, "CCE.01507001", Level::WARN),
        }
    }

    /// Returns the HTTP status of the answer.
    pub fn status(self) -> StatusCode {
        self.row().0
    }

    /// Returns the text of the code: `CCE.01`, the status, and a number.
    pub fn text(self) -> &'static str {
        self.row().1
    }

    fn level(self) -> Level {
        self.row().2
    }
}

/// The body of an error, in the vendor's current and older formats.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Envelope {
    /// The stable error code.
    #[serde(rename = "errorCode")]
    #[schema(example = "CCE.01400001")]
    pub code: &'static str,
    /// A description of the error for people.
    #[serde(rename = "errorMessage")]
    pub message: String,
    /// The error code again, as in `errorCode`.
    #[serde(rename = "error_code")]
    pub older_code: &'static str,
    /// The description again, as in `errorMessage`.
    #[serde(rename = "error_msg")]
    pub older_message: String,
}

/// An error to return to the client.
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    message: String,
    reason: Option<String>,
    retry_after: Option<Duration>,
}

/// The log entry of an error, attached to its response as an extension.
#[derive(Clone, Debug)]
pub(super) struct Logged {
    pub(super) level: Level,
    pub(super) code: &'static str,
    pub(super) reason: Option<String>,
}

impl Problem {
    /// Creates an error whose message the client can read in full.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Problem { code, message: message.into(), reason: None, retry_after: None }
    }

    /// Creates an error for a malformed request. The message names the malformed part and the expected form.
    pub fn invalid(message: impl Into<String>) -> Self {
        Problem::new(Code::Invalid, message)
    }

    /// Creates an internal error; `reason` is only logged.
    pub fn internal(reason: impl Into<String>) -> Self {
        Problem { reason: Some(reason.into()), ..Problem::new(Code::Internal, INTERNAL_MESSAGE) }
    }

    /// Creates the error for a missing image cache. It is the same for an ID of another tenant, an unknown ID
    /// and a malformed ID.
    pub fn no_such_cache() -> Self {
        Problem::new(Code::NotFound, "there is no such image cache")
    }

    /// Sets the time after which the client can retry; rounded up to seconds.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Problem { retry_after: Some(wait), ..self }
    }

    /// Returns the stable error code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns the message for the client.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::NotFound(_) | Error::Store(StoreError::Gone(_)) => Problem::no_such_cache(),
            Error::Spec(_) | Error::NoImports => Problem::new(Code::Invalid, message),
            Error::UnknownCluster(_) => Problem::new(Code::UnknownCluster, message),
            Error::QueueFull { retry_after } => {
                Problem::new(Code::QueueFull, message).retry_after(retry_after)
            }
            Error::Store(StoreError::QueueFull) => Problem::new(Code::QueueFull, message),
            Error::NotCancellable { .. } | Error::NotRefreshable { .. } | Error::Imported(_) => {
                Problem::new(Code::State, message)
            }
            Error::NoRoomToRefresh { .. } | Error::NoRoomForArchive => Problem::new(Code::NoSpace, message),
            Error::ArchiveTooLarge { .. } => Problem::new(Code::TooLarge, message),
            Error::ArchiveCompressed => Problem::new(Code::MediaType, message),
            Error::Plan(_) => planned(error.class(), message),
            Error::Replayed | Error::Store(StoreError::Replayed) => {
                Problem::new(Code::Unauthenticated, message)
            }
            Error::Stopping => Problem::new(Code::Unavailable, message).retry_after(Duration::from_secs(5)),
            Error::Store(StoreError::NameTaken(_)) => Problem::new(Code::NameTaken, message),
            Error::Store(StoreError::Quota { .. } | StoreError::TenantFull { .. }) => {
                Problem::new(Code::Quota, message)
            }
            Error::Store(StoreError::Full { .. }) => Problem::new(Code::NoSpace, message),
            Error::Store(StoreError::KeyReused) => Problem::new(Code::KeyReused, message),
            Error::Store(StoreError::NoNamespace(_)) => Problem::new(Code::Forbidden, message),
            Error::Store(StoreError::Unreachable(_)) => {
                let problem = Problem::new(Code::Unavailable, "the records are temporarily unreachable");
                Problem { reason: Some(message), ..problem }.retry_after(Duration::from_secs(5))
            }
            Error::Store(StoreError::Changed(_)) => Problem::new(Code::State, message),
            Error::Store(StoreError::Failed { full: true, .. }) => Problem {
                reason: Some(message),
                ..Problem::new(Code::Unavailable, "the disk of the daemon's records is full")
            },
            Error::Store(
                StoreError::Corrupt { .. } | StoreError::Foreign { .. } | StoreError::Failed { .. },
            ) => Problem::internal(message),
        }
    }
}

/// Converts a failed dry run. A refusal by a registry is an error of the request, not of the daemon.
fn planned(class: Class, message: String) -> Problem {
    match class {
        Class::Invalid | Class::NotFound | Class::Denied | Class::Corrupt | Class::Conflict => {
            Problem::new(Code::Unresolvable, message)
        }
        Class::NoSpace => Problem::new(Code::NoSpace, message),
        Class::Transient | Class::Cancelled => Problem::new(Code::Unavailable, message),
        Class::Busy => Problem::new(Code::QueueFull, message).retry_after(Duration::from_secs(5)),
        Class::Internal => Problem::internal(message),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let message: String = self.message.chars().take(MAX_MESSAGE).collect();
        let code = self.code.text();
        let body = Envelope { code, message: message.clone(), older_code: code, older_message: message };
        let mut response = (self.code.status(), Json(body)).into_response();
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.code == Code::Unauthenticated {
            // RFC 9110, 11.6.1: a 401 names a scheme.
            let scheme = HeaderValue::from_static(ALGORITHM);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        let logged = Logged { level: self.code.level(), code, reason: self.reason };
        response.extensions_mut().insert(logged);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use http_body_util::BodyExt as _;

    use super::*;
    use larder_model::image_cache::{CacheId, Status};

    #[test]
    fn codes_are_unique_and_contain_their_status() {
        let texts: HashSet<&str> = Code::ALL.iter().map(|code| code.text()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(code.text()[6..9], code.status().as_u16().to_string(), "{code:?}");
        }
        let statuses: HashSet<u16> = Code::ALL.iter().map(|code| code.status().as_u16()).collect();
        let wanted = [400, 401, 403, 404, 405, 409, 413, 415, 429, 500, 503, 507];
        assert_eq!(statuses, HashSet::from(wanted));
    }

    #[test]
    fn the_reference_lists_every_code() {
        let page = include_str!("../../docs/reference/http-api.md");
        let rows = page.lines().filter(|line| line.contains("| CCE."));
        let listed: Vec<&str> = rows.collect();
        assert_eq!(listed.len(), Code::ALL.len());
        for code in Code::ALL {
            let row = format!("| {} | {} |", code.status().as_u16(), code.text());
            assert!(listed.iter().any(|line| line.starts_with(&row)), "{row}");
        }
    }

    #[tokio::test]
    async fn both_forms_in_one_body() {
        let problem = Problem::new(Code::QueueFull, "full").retry_after(Duration::from_millis(1500));
        let response = problem.into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wanted = serde_json::json!({
            "errorCode": "CCE.01429101", "errorMessage": "full", "error_code": "CCE.01429101", "error_msg": "full",
        });
        assert_eq!(json, wanted);
    }

    #[test]
    fn internal_reasons_are_not_in_the_message() {
        let broken = StoreError::Corrupt {
            path: "/var/lib/larder/larder.db".into(),
            what: "page 3".into(),
            remedy: "restore".into(),
        };
        let problem = Problem::from(Error::Store(broken));
        assert_eq!((problem.code, problem.message.as_str()), (Code::Internal, INTERNAL_MESSAGE));
        assert!(problem.reason.unwrap().contains("page 3"));
        let full = StoreError::Failed { doing: "writing", reason: "/var/x".into(), full: true };
        let problem = Problem::from(Error::Store(full));
        assert_eq!(problem.code, Code::Unavailable);
        assert!(!problem.message.contains("/var/x"));
    }

    #[test]
    fn every_refusal_has_its_status() {
        let id = CacheId::random();
        let status = |error: Error| Problem::from(error).code.status().as_u16();
        assert_eq!(status(Error::NotFound(id)), 404);
        assert_eq!(status(Error::Imported(id)), 409);
        assert_eq!(status(Error::ArchiveTooLarge { gib: 20 }), 413);
        assert_eq!(status(Error::NoImports), 400);
        assert_eq!(status(Error::ArchiveCompressed), 415);
        assert_eq!(status(Error::NoRoomForArchive), 507);
        assert_eq!(status(Error::UnknownCluster("x".into())), 400);
        assert_eq!(status(Error::Stopping), 503);
        assert_eq!(status(Error::NotCancellable { id, status: Status::Available }), 409);
        assert_eq!(status(Error::NoRoomToRefresh { need_gib: 2, free_gib: 1, capacity_gib: 3 }), 507);
        assert_eq!(status(Error::Store(StoreError::Quota { have: 50, max: 50 })), 403);
        let space = StoreError::TenantFull { need_gib: 20, used_gib: 90, max_gib: 100 };
        assert_eq!(status(Error::Store(space)), 403);
        assert_eq!(status(Error::Replayed), 401);
        assert_eq!(status(Error::Store(StoreError::NameTaken("a".parse().unwrap()))), 409);
        assert_eq!(status(Error::Store(StoreError::Full { need_gib: 2, free_gib: 1, capacity_gib: 3 })), 507);
        assert_eq!(status(Error::Store(StoreError::KeyReused)), 400);
    }
}
