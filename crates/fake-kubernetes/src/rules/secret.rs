//! Secrets and config maps (pkg/apis/core/v1/defaults.go, pkg/apis/core/validation/validation.go
//! ValidateSecret; facts/kubernetes.md, 1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::cause::Cause;
use super::{set, text};

/// Maximum size of all values, in bytes.
const MAX_SIZE: usize = 1 << 20;

pub(super) fn default(object: &mut Value) {
    set(object, "", "type", json!("Opaque"));
    let plain = object.as_object_mut().and_then(|fields| fields.remove("stringData"));
    for (key, value) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
        object["data"][key] = STANDARD.encode(value.as_str().unwrap_or_default()).into();
    }
}

/// Validates data: keys must be file names, and the total size of values is limited.
fn data(object: &Value, causes: &mut Vec<Cause>, length: impl Fn(&str) -> usize) {
    let mut size = 0;
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let fits = |sign: char| sign.is_ascii_alphanumeric() || matches!(sign, '-' | '_' | '.');
        if key.is_empty() || key.len() > 253 || !key.chars().all(fits) || key == "." || key.starts_with("..")
        {
            let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
            causes.push(Cause::invalid(&format!("data[{key}]"), &key.as_str().into(), why));
        }
        size += length(value.as_str().unwrap_or_default());
    }
    if size > MAX_SIZE {
        let message = format!("Too long: may not be more than {MAX_SIZE} bytes");
        causes.push(Cause::new("FieldValueTooLong", "data", message));
    }
}

pub(super) fn validate_map(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    data(object, causes, str::len);
    immutable(object, old, causes);
}

pub(super) fn validate(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let bytes = |text: &str| STANDARD.decode(text).ok();
    data(object, causes, |text| bytes(text).map_or(0, |bytes| bytes.len()));
    let key = match text(object, "/type") {
        "kubernetes.io/dockerconfigjson" => Some(".dockerconfigjson"),
        "kubernetes.io/dockercfg" => Some(".dockercfg"),
        _ => None,
    };
    if let Some(key) = key {
        match object["data"][key].as_str().and_then(bytes) {
            None => causes.push(Cause::required(&format!("data[{key}]"), "")),
            // Only JSON syntax is checked.
            Some(bytes) => {
                if let Err(e) = serde_json::from_slice::<Value>(&bytes) {
                    let why = format!("invalid character in JSON: {e}");
                    causes.push(Cause::invalid(
                        &format!("data[{key}]"),
                        &"<secret contents redacted>".into(),
                        &why,
                    ));
                }
            }
        }
    }
    if old.is_some_and(|old| old.get("type") != object.get("type")) {
        causes.push(Cause::invalid("type", &object["type"], "field is immutable"));
    }
    immutable(object, old, causes);
}

fn immutable(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return };
    for field in ["immutable", "data"] {
        if old[field] != object[field] {
            causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
}
