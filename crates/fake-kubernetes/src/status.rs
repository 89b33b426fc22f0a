//! Error responses with the texts of a real server: `Status` objects (apimachinery pkg/api/errors/errors.go).

use serde_json::{Value, json};

use super::cause::Cause;
use super::kind::Kind;

/// The error response of a refused request.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) details: Option<Value>,
    pub(super) retry_after: Option<u32>,
}

impl Refusal {
    pub(super) fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Refusal { code, reason: reason.to_owned(), message: message.into(), details: None, retry_after: None }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Refusal::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Refusal::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Refusal::new(500, "InternalError", message)
    }

    pub(super) fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {why}", kind.qualified())
        } else {
            format!("{} \"{name}\" is forbidden: {why}", kind.qualified())
        };
        Refusal::new(403, "Forbidden", message).about(kind, name)
    }

    pub(super) fn not_found(kind: &Kind, name: &str) -> Self {
        Refusal::new(404, "NotFound", format!("{} \"{name}\" not found", kind.qualified())).about(kind, name)
    }

    /// Error for a path without a handler, such as that of an undefined kind. It is not a `Status`, but the
    /// text of Go's `http.NotFound` (apiserver pkg/server/handler.go, the end of the delegation).
    pub(super) fn no_route() -> Self {
        Refusal::new(404, "", "404 page not found\n")
    }

    pub(super) fn method_not_allowed() -> Self {
        Refusal::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub(super) fn already_exists(kind: &Kind, name: &str) -> Self {
        Refusal::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.qualified()))
            .about(kind, name)
    }

    pub(super) fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", kind.qualified());
        Refusal::new(409, "Conflict", message).about(kind, name)
    }

    /// Error for a write to an old version (apiserver pkg/registry/generic/registry/store.go,
    /// OptimisticLockErrorMsg).
    pub(super) fn stale(kind: &Kind, name: &str) -> Self {
        Refusal::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub(super) fn expired(message: &str) -> Self {
        Refusal::new(410, "Expired", message)
    }

    pub(super) fn media_type(given: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml (got {given})"
        );
        Refusal::new(415, "UnsupportedMediaType", message)
    }

    pub(super) fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Self {
        let texts: Vec<_> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.text)).collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let group = if kind.group.is_empty() { String::new() } else { format!(".{}", kind.group) };
        let message = format!("{}{group} \"{name}\" is invalid: {text}", kind.kind);
        let causes: Vec<_> = causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "message": cause.text, "field": cause.field}))
            .collect();
        let mut refusal = Refusal::new(422, "Invalid", message);
        refusal.details =
            Some(json!({"name": name, "group": kind.group, "kind": kind.kind, "causes": causes}));
        refusal
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        self.details = Some(json!({"name": name, "group": kind.group, "kind": kind.plural}));
        self
    }

    /// Returns the body of the response.
    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        let mut details = self.details.clone();
        if let Some(after) = self.retry_after {
            details.get_or_insert_with(|| json!({}))["retryAfterSeconds"] = json!(after);
        }
        if let Some(details) = details {
            body["details"] = details;
        }
        body
    }
}
