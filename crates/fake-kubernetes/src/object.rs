//! Helpers to read and change objects.

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};

/// Returns the current time like `metav1.Time`, in whole seconds.
pub(super) fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Returns the current time like `metav1.MicroTime`.
pub(super) fn now_micro() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Returns a string of the metadata, or an empty string if it is not set.
pub(super) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// Returns the metadata, which is created if missing.
pub(super) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    object["metadata"].as_object_mut().expect("the metadata is an object")
}

/// Returns a string, or an empty string if it is not set.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Returns a list, or an empty list if it is not set.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    list(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect()
}

pub(super) fn has_finalizer(object: &Value, name: &str) -> bool {
    finalizers(object).contains(&name)
}

/// Adds or removes a finalizer.
pub(super) fn set_finalizer(object: &mut Value, name: &str, wanted: bool) {
    let mut names: Vec<Value> =
        finalizers(object).into_iter().filter(|other| *other != name).map(Value::from).collect();
    if wanted {
        names.push(name.into());
    }
    let metadata = metadata(object);
    if names.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), names.into());
    }
}

pub(super) fn deleting(object: &Value) -> bool {
    !meta(object, "deletionTimestamp").is_empty()
}

/// Reports whether a condition of this type is "True".
pub(super) fn condition(object: &Value, kind: &str) -> bool {
    list(object, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Removes fields that Go's `omitempty` does not write: null, and empty lists and maps of the metadata
/// (apimachinery pkg/apis/meta/v1/types.go).
pub(super) fn tidy(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|_, value| match value {
            Value::Null => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            Value::String(text) => !text.is_empty(),
            _ => true,
        });
    }
}

/// Removes null fields everywhere, as decoding into Go types does.
pub(super) fn drop_null(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_null);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null),
        _ => {}
    }
}
