//! The data of a pull secret: `.dockerconfigjson` and `.dockercfg` (kubernetes
//! pkg/credentialprovider/config.go).

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::keyring::Entries;
use larder_model::class::Class;
use larder_model::credential::{Credential, Secret};

/// Maximum size of a secret (the limit of Kubernetes) and of a docker config, bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// The error for a secret that cannot be parsed. It contains none of the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The data is longer than [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// The data is not JSON or has the wrong structure.
    #[error("it is not a docker configuration: error at line {line}, column {column}")]
    Malformed {
        /// Line number, starting from 1.
        line: usize,
        /// Column number, starting from 1.
        column: usize,
    },
    /// The value of `auth` is not base64 of `user:password`.
    #[error("the value of an auth field is not base64 of user:password")]
    Auth,
    /// A member has another type than in docker's format.
    #[error("its {0} has the wrong type or value")]
    Member(&'static str),
}

impl SecretError {
    /// Returns the class of the error, which determines exit code and retries.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

/// A value in `auths`.
#[derive(Deserialize)]
pub(super) struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

/// Entries by registry. A null entry is ignored.
type Auths = BTreeMap<String, Option<Auth>>;

/// Parses `{"auths": {…}}`, the value of `.dockerconfigjson`.
///
/// # Errors
/// Returns [`SecretError`] if the data is too long or malformed.
pub fn parse_dockerconfigjson(bytes: &[u8]) -> Result<Entries, SecretError> {
    #[derive(Deserialize)]
    struct File {
        auths: Option<Auths>,
    }
    let file: File = read(bytes)?;
    kubelet_entries(file.auths.unwrap_or_default())
}

/// Parses the map of entries itself, the value of `.dockercfg`.
///
/// # Errors
/// Returns [`SecretError`] if the data is too long or malformed.
pub fn parse_dockercfg(bytes: &[u8]) -> Result<Entries, SecretError> {
    kubelet_entries(read(bytes)?)
}

/// Parses JSON of at most [`MAX_BYTES`].
pub(super) fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, SecretError> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(SecretError::TooLong);
    }
    // The text of a serde_json error would quote the content.
    serde_json::from_slice(bytes).map_err(|e| SecretError::Malformed { line: e.line(), column: e.column() })
}

/// Converts the entries as the kubelet does: it ignores identity tokens, and one malformed entry fails the
/// whole secret.
fn kubelet_entries(auths: Auths) -> Result<Entries, SecretError> {
    let mut entries = Vec::with_capacity(auths.len());
    for (key, auth) in auths {
        let credential = auth.map(Auth::basic).transpose()?.flatten();
        entries.extend(credential.map(|credential| (key, credential)));
    }
    Ok(Entries::new(entries))
}

impl Auth {
    /// Returns user name and password; `auth` takes precedence unless it is empty. `None` if both are empty.
    fn basic(self) -> Result<Option<Credential>, SecretError> {
        let (username, password) = match self.auth.filter(|auth| !auth.is_empty()) {
            Some(auth) => decode(&auth)?,
            None => (self.username.unwrap_or_default(), self.password.unwrap_or_default()),
        };
        let given = !username.is_empty() || !password.is_empty();
        Ok(given.then(|| Credential::Basic { username, password: Secret::new(password) }))
    }

    /// Returns the credential as docker reads its own config: an identity token takes precedence.
    pub(super) fn credential(mut self) -> Result<Option<Credential>, SecretError> {
        match self.identity_token.take().filter(|token| !token.is_empty()) {
            Some(token) => Ok(Some(Credential::IdentityToken(Secret::new(token)))),
            None => self.basic(),
        }
    }
}

/// Decodes base64, padded or not, of `user:password`, split at the first colon.
fn decode(auth: &str) -> Result<(String, String), SecretError> {
    let padding = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&STANDARD, padding);
    let auth: String = auth.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let bytes = engine.decode(auth.trim()).map_err(|_| SecretError::Auth)?;
    let text = String::from_utf8(bytes).map_err(|_| SecretError::Auth)?;
    let (username, password) = text.split_once(':').ok_or(SecretError::Auth)?;
    Ok((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(json: &str) -> Result<Vec<(String, String)>, SecretError> {
        let entries = parse_dockerconfigjson(json.as_bytes())?;
        let pair = |credential| match credential {
            Credential::Basic { username, password } => (username, password.expose().to_owned()),
            Credential::IdentityToken(_) => panic!("the kubelet ignores identity tokens"),
        };
        Ok(entries.lookup("r.io", "a").into_iter().map(pair).collect())
    }

    fn pair(username: &str, password: &str) -> Vec<(String, String)> {
        vec![(username.to_owned(), password.to_owned())]
    }

    #[test]
    fn forms_of_an_entry() {
        // The values decode to "u:p:q" and "user:pw".
        for (entry, want) in [
            (r#"{"username":"u","password":"p"}"#, pair("u", "p")),
            (r#"{"auth":"dTpwOnE="}"#, pair("u", "p:q")),
            (r#"{"auth":"dTpwOnE"}"#, pair("u", "p:q")),
            (r#"{"auth":"dXNlcjpwdw==","username":"x","password":"y"}"#, pair("user", "pw")),
            (r#"{"auth":"","username":"x","password":"y"}"#, pair("x", "y")),
            (r#"{"email":"a@b"}"#, vec![]),
            (r#"{"identitytoken":"t"}"#, vec![]),
            ("null", vec![]),
        ] {
            assert_eq!(found(&format!(r#"{{"auths":{{"r.io":{entry}}}}}"#)), Ok(want), "{entry}");
        }
    }

    #[test]
    fn one_malformed_entry_fails_the_secret_without_its_content() {
        for entry in [
            "1",
            r#"{"auth":"%%%secret"}"#,
            r#"{"auth":"c2VjcmV0"}"#,
            r#"{"password":["secret"]}"#,
            r#"{"auth":"/////w=="}"#,
        ] {
            let json = format!(r#"{{"auths":{{"a":{{"username":"u","password":"p"}},"r.io":{entry}}}}}"#);
            let error = found(&json).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        let long = vec![b' '; 1 + (1 << 20)];
        assert_eq!(parse_dockercfg(&long).unwrap_err(), SecretError::TooLong);
    }

    #[test]
    fn null_counts_as_empty() {
        let entries = parse_dockerconfigjson(br#"{"auths":null}"#).unwrap();
        assert_eq!(entries.lookup("r.io", "a"), []);
    }

    #[test]
    fn dockercfg_is_the_map_itself() {
        let entries = parse_dockercfg(br#"{"https://r.io/v1/":{"auth":"dTpwOnE="}}"#).unwrap();
        assert_eq!(entries.lookup("r.io", "a").len(), 1);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in any::<Vec<u8>>(), key in ".{0,40}", auth in ".{0,40}") {
            let _ = parse_dockercfg(&bytes);
            let _ = parse_dockerconfigjson(&bytes);
            let json = serde_json::json!({ key.clone(): { "auth": auth } }).to_string();
            if let Ok(entries) = parse_dockercfg(json.as_bytes()) {
                entries.lookup(&key, &key);
            }
        }
    }
}
