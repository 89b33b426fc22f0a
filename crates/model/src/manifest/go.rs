//! JSON as Go's `encoding/json` decodes it into a struct.
//!
//! podman, CRI-O, containerd and docker decode an image config with it. If it refuses a config, every command
//! that lists images omits that image, and in a store of containers/storage also other images. If it accepts
//! a config, the image is good, even if other JSON parsers disagree. Its rules:
//!
//! - field names match in any case, and two non-ASCII letters are equal to the letters that they resemble;
//! - `null` is a value of every type and changes nothing, except that it empties a list;
//! - for duplicate keys, the last one wins;
//! - a number must be a 64-bit integer without fraction and exponent;
//! - bytes that are not UTF-8 and unpaired surrogates become U+FFFD;
//! - unknown fields can contain any JSON.

mod decode;
mod time;

use std::collections::BTreeMap;

use super::error::{ManifestError, truncate};
use decode::Decode;

/// The type of a JSON value.
#[derive(Debug)]
pub(super) enum Shape {
    /// A string.
    Text,
    /// A string in standard base64 (`[]byte`).
    Base64,
    /// A time (`time.Time`).
    Time,
    /// `true` or `false`.
    Flag,
    /// A signed 64-bit integer.
    Integer,
    /// An object whose content is ignored (`struct{}`).
    Empty,
    /// A string or a list of strings (docker's `strslice.StrSlice`).
    Words,
    /// Only `null` is allowed: with this field, a parser would read the document as another kind.
    Absent,
    /// A list of values of one type.
    List(&'static Shape),
    /// An object with any keys and values of one type.
    Map(&'static Shape),
    /// An object with these fields.
    Object(&'static [(&'static str, Shape)]),
}

/// The decoded fields of an object. Maps, flags and integers are checked but not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Object(BTreeMap<&'static str, Value>);

/// A decoded JSON value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// A string, or a time in RFC 3339.
    Text(String),
    List(Vec<Option<Value>>),
    Object(Object),
    Checked,
}

impl Object {
    /// Returns a string, or a time in RFC 3339; empty if absent, as in Go.
    pub(super) fn text(&self, field: &str) -> &str {
        match self.0.get(field) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// Returns the strings of a list; empty if absent.
    pub(super) fn texts(&self, field: &str) -> Vec<&str> {
        let texts = self.list(field).iter().map(|value| match value {
            Some(Value::Text(text)) => text.as_str(),
            _ => "",
        });
        texts.collect()
    }

    /// Returns the objects of a list; empty if absent.
    pub(super) fn objects(&self, field: &str) -> impl Iterator<Item = Option<&Object>> {
        self.list(field).iter().map(|value| match value {
            Some(Value::Object(object)) => Some(object),
            _ => None,
        })
    }

    fn list(&self, field: &str) -> &[Option<Value>] {
        match self.0.get(field) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// Returns an object; `None` if absent.
    pub(super) fn object(&self, field: &str) -> Option<&Object> {
        match self.0.get(field) {
            Some(Value::Object(object)) => Some(object),
            _ => None,
        }
    }

    /// Stores a field with the semantics of decoding into a struct.
    fn set(&mut self, field: &'static str, shape: &Shape, value: Option<Value>) {
        match (value, self.0.get_mut(field)) {
            (Some(Value::Object(new)), Some(Value::Object(old))) => old.0.extend(new.0),
            (Some(value), _) => drop(self.0.insert(field, value)),
            (None, _) if matches!(shape, Shape::List(_) | Shape::Time) => drop(self.0.remove(field)),
            (None, _) => {}
        }
    }
}

/// Parses a document that is an object.
///
/// # Errors
/// Returns [`ManifestError::Malformed`] if the bytes are not JSON, or [`ManifestError::Unreadable`] with the
/// first field that Go refuses.
pub(super) fn read(bytes: &[u8], shape: &'static Shape) -> Result<Object, ManifestError> {
    let malformed = |reason: String| ManifestError::Malformed { reason: truncate(&reason) };
    scan(bytes).map_err(|reason| malformed(reason.to_owned()))?;
    let path = decode::Path::default();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde::de::DeserializeSeed::deserialize(Decode { shape, path: &path }, &mut json);
    match read.and_then(|value| json.end().map(|()| value)) {
        Ok(Some(Value::Object(object))) => Ok(object),
        Ok(_) => Ok(Object::default()),
        Err(error) if !error.is_eof() && !path.is_empty() => Err(ManifestError::Unreadable {
            field: truncate(&path.to_string()),
            rule: truncate(&error.to_string()),
        }),
        Err(error) => Err(malformed(error.to_string())),
    }
}

/// Maximum nesting depth of Go's parser.
const MAX_DEPTH: usize = 10_000;

/// Checks the two rules of Go's scanner that serde_json does not enforce for byte strings.
fn scan(bytes: &[u8]) -> Result<(), &'static str> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            0..0x20 if in_string => return Err("a string contains an unescaped control character"),
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err("its values are nested more than 10000 levels deep");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
