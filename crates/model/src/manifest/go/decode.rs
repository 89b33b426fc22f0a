//! Decoding into a [`Shape`] with serde, with the path of the field that is refused.

use std::cell::RefCell;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::time::rfc3339;
use super::{Object, Shape, Value};

/// The path of the current field; after an error, of the field that is refused.
#[derive(Debug, Default)]
pub(super) struct Path(RefCell<Vec<String>>);

impl Path {
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Runs `read` one level deeper. After a failure, the path is unchanged.
    fn step<T, E>(&self, step: String, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.0.borrow_mut().push(step);
        let value = read()?;
        self.0.borrow_mut().pop();
        Ok(value)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.borrow().concat().trim_start_matches('.'))
    }
}

/// Decodes one value; `None` is `null`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decode<'a> {
    pub(super) shape: &'static Shape,
    pub(super) path: &'a Path,
}

impl<'a> Decode<'a> {
    fn of(self, shape: &'static Shape) -> Self {
        Decode { shape, ..self }
    }

    fn text<E: Error>(self, bytes: &[u8], escaped: bool) -> Result<Option<Value>, E> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let value = match self.shape {
            // Go does not resolve escape sequences in a time.
            Shape::Time => match rfc3339(bytes).filter(|_| !escaped) {
                Some(time) => Value::Text(time),
                None => {
                    return Err(E::custom(format_args!(
                        "{text:?} is not a time in RFC 3339, such as 2006-01-02T15:04:05Z"
                    )));
                }
            },
            Shape::Base64 if STANDARD.decode(bytes).is_err() => return Err(E::custom("it is not base64")),
            Shape::Text | Shape::Base64 => Value::Text(text),
            Shape::Words => Value::List(vec![Some(Value::Text(text))]),
            _ => return Err(E::invalid_type(serde::de::Unexpected::Str(&text), &self)),
        };
        Ok(Some(value))
    }
}

impl<'de> DeserializeSeed<'de> for Decode<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Decode<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.shape {
            Shape::Text | Shape::Base64 => "a string",
            Shape::Time => "a time in RFC 3339",
            Shape::Flag => "true or false",
            Shape::Integer => "an integer without fraction and exponent",
            Shape::Words => "a string or a list of strings",
            Shape::Absent => "an image manifest, which has no such field",
            Shape::List(Shape::Text) => "a list of strings",
            Shape::List(_) => "a list",
            Shape::Map(Shape::Text) => "an object whose values are strings",
            Shape::Empty | Shape::Map(_) | Shape::Object(_) => "an object",
        })
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.shape {
            // Read strings as bytes, because invalid UTF-8 is not an error.
            Shape::Text | Shape::Base64 | Shape::Time | Shape::Words => deserializer.deserialize_bytes(self),
            Shape::Flag => deserializer.deserialize_bool(self),
            Shape::Integer => deserializer.deserialize_i64(self),
            Shape::List(_) => deserializer.deserialize_seq(self),
            Shape::Empty | Shape::Map(_) | Shape::Object(_) => deserializer.deserialize_map(self),
            Shape::Absent => deserializer.deserialize_unit(self),
        }
    }

    fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
        self.text(bytes, false)
    }

    /// Called for strings with escape sequences: serde_json copies only those.
    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        self.text(bytes, true)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Some(Value::Checked))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Some(Value::Checked))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        i64::try_from(value)
            .map(|_| Some(Value::Checked))
            .map_err(|_| E::custom(format_args!("{value} does not fit in a 64-bit integer")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let item = match self.shape {
            Shape::List(item) => self.of(item),
            Shape::Words => self.of(&Shape::Text),
            _ => return Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self)),
        };
        let mut list = Vec::new();
        while let Some(value) = self.path.step(format!("[{}]", list.len()), || seq.next_element_seed(item))? {
            list.push(value);
        }
        Ok(Some(Value::List(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object::default();
        while let Some(key) = map.next_key_seed(Key)? {
            let field = match self.shape {
                Shape::Map(item) => Some((None, *item, format!("[{key:?}]"))),
                Shape::Object(fields) => {
                    let field = fields.iter().find(|(name, _)| is_fold_equal(&key, name));
                    field.map(|(name, shape)| (Some(*name), shape, format!(".{name}")))
                }
                _ => None,
            };
            let Some((name, shape, step)) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = self.path.step(step, || map.next_value_seed(self.of(shape)))?;
            if let Some(name) = name {
                object.set(name, shape, value);
            }
        }
        Ok(Some(Value::Object(object)))
    }
}

/// A key, which might not be UTF-8.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<String, E> {
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Reports whether Go matches `key` to the field `name`, which is ASCII.
pub(in crate::manifest) fn is_fold_equal(key: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}
