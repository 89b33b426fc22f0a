//! Reaching into objects.

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};

/// Now, as `metav1.Time` writes it: whole seconds.
pub(super) fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Now, as `metav1.MicroTime` writes it.
pub(super) fn now_micro() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A string of the metadata; empty where it is not set.
pub(super) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The metadata, made where there is none.
pub(super) fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = Value::Object(Map::new());
    }
    object["metadata"].as_object_mut().expect("set above")
}

/// A string, empty where it is not set.
pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A list, empty where it is not set.
pub(super) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn finalizers(object: &Value) -> Vec<&str> {
    list(object, "/metadata/finalizers").iter().filter_map(Value::as_str).collect()
}

pub(super) fn has_finalizer(object: &Value, name: &str) -> bool {
    finalizers(object).contains(&name)
}

/// Adds or takes a finalizer.
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

/// Whether a condition of this type is "True".
pub(super) fn condition(object: &Value, kind: &str) -> bool {
    list(object, "/status/conditions").iter().any(|c| c["type"] == kind && c["status"] == "True")
}

/// Drops what Go's `omitempty` does not write: null, and empty lists and maps of the metadata (apimachinery
/// pkg/apis/meta/v1/types.go).
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

/// Drops null fields everywhere, as decoding into Go types does.
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
