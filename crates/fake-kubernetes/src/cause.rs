//! Reasons why an object is invalid, with the texts of a real server.

use serde_json::Value;

/// One reason why an object is invalid (apimachinery pkg/util/validation/field/errors.go).
#[derive(Clone, Debug)]
pub(super) struct Cause {
    pub(super) reason: &'static str,
    pub(super) text: String,
    pub(super) field: String,
}

impl Cause {
    pub(super) fn new(reason: &'static str, field: &str, text: String) -> Self {
        Cause { reason, text, field: field.to_owned() }
    }

    pub(super) fn required(field: &str, detail: &str) -> Self {
        let text =
            if detail.is_empty() { "Required value".to_owned() } else { format!("Required value: {detail}") };
        Cause::new("FieldValueRequired", field, text)
    }

    pub(super) fn invalid(field: &str, value: &Value, detail: &str) -> Self {
        Cause::new("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"))
    }

    pub(super) fn forbidden(field: &str, detail: &str) -> Self {
        Cause::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }

    pub(super) fn unsupported(field: &str, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<_> = supported.iter().map(|value| format!("\"{value}\"")).collect();
        let text = format!("Unsupported value: {value}: supported values: {}", supported.join(", "));
        Cause::new("FieldValueNotSupported", field, text)
    }
}
