//! Validation of events and leases (pkg/apis/core/validation/events.go,
//! pkg/apis/coordination/validation/validation.go).

use serde_json::Value;

use super::super::cause::Cause;
use super::text;

/// Maximum size of a note, in bytes.
const MAX_NOTE: usize = 1024;

pub(super) fn validate(object: &Value, causes: &mut Vec<Cause>) {
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
        let given = text(object, &format!("/{field}"));
        if given.is_empty() {
            causes.push(Cause::required(field, ""));
        } else if given.len() > 128 {
            causes.push(Cause::invalid(field, &given.into(), "can have at most 128 characters"));
        }
    }
    if text(object, "/note").len() > MAX_NOTE {
        let why = format!("can have at most {MAX_NOTE} characters");
        causes.push(Cause::invalid("message", &"".into(), &why));
    }
    if !matches!(text(object, "/type"), "Normal" | "Warning") {
        causes.push(Cause::invalid("type", &object["type"], "has invalid value"));
    }
    let (own, about) = (text(object, "/metadata/namespace"), text(object, "/regarding/namespace"));
    if own != about && !(own == "default" && about.is_empty()) {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &about.into(), why));
    }
}

pub(super) fn validate_lease(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        let why = "must be greater than 0";
        causes.push(Cause::invalid("spec.leaseDurationSeconds", &spec["leaseDurationSeconds"], why));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|times| times < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.leaseTransitions", &spec["leaseTransitions"], why));
    }
    if spec["holderIdentity"].as_str().is_some_and(str::is_empty) {
        causes.push(Cause::invalid("spec.holderIdentity", &"".into(), "must not be empty"));
    }
}
