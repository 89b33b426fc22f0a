//! Successful answers of the daemon.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::Error;

/// A successful answer of the daemon. It displays as JSON with every field that the daemon sent, also those
/// that this version does not know.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Address of the daemon.
    address: String,
    json: Value,
}

impl Answer {
    pub(super) fn new(address: String, json: Value) -> Self {
        Answer { address, json }
    }

    /// Reads the fields of `T`. Other fields are ignored.
    ///
    /// # Errors
    /// Returns [`Error::Incompatible`] if a field is missing or has another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let incompatible = |e: serde_json::Error| Error::Incompatible {
            address: self.address.clone(),
            reason: e.to_string(),
        };
        T::deserialize(&self.json).map_err(incompatible)
    }

    /// Returns the answer without all fields but `name`.
    #[must_use]
    pub fn only(mut self, name: &str) -> Self {
        if let Value::Object(fields) = &mut self.json {
            fields.retain(|field, _| field == name);
        }
        self
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.json)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Known {
        name: String,
    }

    fn answer(json: Value) -> Answer {
        Answer::new("unix:///d".to_owned(), json)
    }

    #[test]
    fn fields_of_a_newer_daemon_are_ignored_and_displayed() {
        let newer = answer(json!({"name": "web", "colour": {"deep": [1, null]}}));
        assert_eq!(newer.read::<Known>().unwrap().name, "web");
        let displayed: Value = serde_json::from_str(&newer.to_string()).unwrap();
        assert_eq!(displayed["colour"], json!({"deep": [1, null]}));
        assert_eq!(newer.only("colour").json, json!({"colour": {"deep": [1, null]}}));
    }

    #[test]
    fn a_missing_field_is_named() {
        for bad in [json!({}), json!({"name": 5}), json!([])] {
            let error = answer(bad.clone()).read::<Known>().unwrap_err();
            assert!(matches!(error, Error::Incompatible { .. }), "{bad}: {error:?}");
        }
        let error = answer(json!({"names": 1})).read::<Known>().unwrap_err().to_string();
        assert!(error.contains("unix:///d") && error.contains("missing field `name`"), "{error}");
    }
}
