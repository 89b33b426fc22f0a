//! JSON from a registry, with a size limit and without duplicate keys in an object.
//!
//! Parsers differ in which of two duplicate keys they use, so a document with duplicates is ambiguous.
//! serde_json's limit of 128 levels also applies.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::MAX_BYTES;
use super::error::{ManifestError, check_max, truncate};

/// Checks size, syntax and keys of a complete document.
pub(super) fn check(bytes: &[u8]) -> Result<(), ManifestError> {
    check_max("bytes", bytes.len() as u64, MAX_BYTES)?;
    read::<UniqueKeys>(bytes).map(|_| ())
}

/// Parses a checked document as `T`.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|e| ManifestError::Malformed { reason: truncate(&e.to_string()) })
}

/// Any JSON value without duplicate keys; its content is discarded.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueKeys)
    }
}

impl<'de> Visitor<'de> for UniqueKeys {
    type Value = UniqueKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element::<UniqueKeys>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<UniqueKeys>()?;
            if let Some(duplicate) = seen.replace(key) {
                return Err(Error::custom(format_args!("duplicate key {:?}", truncate(&duplicate))));
            }
        }
        Ok(self)
    }
}
