//! A JSON parser that refuses duplicate keys.
//!
//! RFC 8259, 4 leaves the meaning of a repeated key open. Two readers that choose different values see
//! different orders, so such a body is refused.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Maximum length of a key in a message, characters.
const SHOWN: usize = 64;

/// Parses a document.
///
/// # Errors
/// An error of the category `Data` names a duplicate key. Others are syntax errors.
pub(super) fn parse(bytes: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Unique.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

struct Unique;

impl<'de> DeserializeSeed<'de> for Unique {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Unique {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Unique)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = pairs.next_key::<String>()? {
            if object.contains_key(&key) {
                let short: String = key.chars().take(SHOWN).collect();
                return Err(de::Error::custom(format_args!("duplicate key {short:?}")));
            }
            object.insert(key, pairs.next_value_seed(Unique)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_like_serde_json() {
        for text in [
            "null",
            "true",
            "5",
            "-5",
            "20.0",
            "1e3",
            "18446744073709551615",
            "\"a\\u0041\"",
            "[]",
            "{}",
            r#"{"a":[1,{"b":null,"a":"x"}],"c":{"a":{}}}"#,
        ] {
            let wanted: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text.as_bytes()).unwrap(), wanted, "{text}");
        }
        for bad in ["", "{", "{} {}", "{\"a\":}", "[1,]", &"[".repeat(100_000)] {
            assert!(!parse(bad.as_bytes()).unwrap_err().is_data(), "{}", &bad[..bad.len().min(9)]);
        }
    }

    #[test]
    fn duplicate_keys_are_refused() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":{"x":[{"k":1,"\u006b":2}]}}"#, r#"[{"":1,"":2}]"#] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.is_data() && error.to_string().contains("duplicate key"), "{text}: {error}");
        }
    }
}
