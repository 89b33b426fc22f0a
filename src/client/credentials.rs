//! Credentials of a client.

use chrono::{DateTime, Utc};
use reqwest::Url;

use super::{Request, host};
use larder_model::credential::Secret;
use larder_model::digest::hex;
use larder_model::signature::{ALGORITHM, Signable};

/// Format of `X-Sdk-Date`, in UTC.
const DATE_FORM: &str = "%Y%m%dT%H%M%SZ";

/// A credential of a tenant. Over the Unix socket none is needed.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// No credential: the socket identifies the user of the process.
    None,
    /// A token, sent as `X-Auth-Token`.
    Token(Secret),
    /// A pair of keys for signing requests.
    Keys {
        /// ID of the access key.
        access: String,
        /// The secret key.
        secret: Secret,
    },
}

/// The reason why credentials cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// One key without the other.
    #[error("LARDER_ACCESS_KEY and LARDER_SECRET_KEY belong together: one of them is not set")]
    Half,
    /// Two kinds of credentials.
    #[error("LARDER_TOKEN and LARDER_ACCESS_KEY are both set: unset one of them")]
    Twice,
    /// A credential that cannot be sent in a header.
    #[error("{0} contains characters that are not allowed in a token or key")]
    Characters(&'static str),
}

impl Credentials {
    /// Reads `LARDER_TOKEN`, or `LARDER_ACCESS_KEY` and `LARDER_SECRET_KEY`. Empty variables count as unset.
    ///
    /// # Errors
    /// Fails if variables conflict, are incomplete, or contain invalid characters.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, CredentialsError> {
        let get = |name: &'static str| match variable(name).filter(|value| !value.is_empty()) {
            Some(value) if value.bytes().all(|b| b.is_ascii_graphic()) => Ok(Some(value)),
            Some(_) => Err(CredentialsError::Characters(name)),
            None => Ok(None),
        };
        match (get("LARDER_TOKEN")?, get("LARDER_ACCESS_KEY")?, get("LARDER_SECRET_KEY")?) {
            (None, None, None) => Ok(Credentials::None),
            (Some(token), None, None) => Ok(Credentials::Token(Secret::new(token))),
            (None, Some(access), Some(secret)) => {
                Ok(Credentials::Keys { access, secret: Secret::new(secret) })
            }
            (Some(_), ..) => Err(CredentialsError::Twice),
            (None, ..) => Err(CredentialsError::Half),
        }
    }

    /// Returns the authentication headers for a request whose body has the SHA-256 `body`.
    pub(super) fn headers(
        &self,
        request: &Request<'_>,
        url: &Url,
        body: [u8; 32],
        now: DateTime<Utc>,
    ) -> Vec<(&'static str, String)> {
        match self {
            Credentials::None => Vec::new(),
            Credentials::Token(token) => vec![("X-Auth-Token", token.expose().to_owned())],
            Credentials::Keys { access, secret } => {
                let date = now.format(DATE_FORM).to_string();
                let query: Vec<(String, String)> = request
                    .query
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect();
                let headers = [("host".to_owned(), host(url)), ("x-sdk-date".to_owned(), date.clone())];
                let signable = Signable {
                    method: request.method.as_str(),
                    path: request.path,
                    query: &query,
                    headers: &headers,
                    body,
                };
                let signature = hex(&signable.sign(&date, secret));
                let claim = format!(
                    "{ALGORITHM} Access={access}, SignedHeaders=host;x-sdk-date, Signature={signature}"
                );
                vec![("X-Sdk-Date", date), ("Authorization", claim)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_environment() {
        let of = |set: &[(&str, &str)]| {
            Credentials::of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert!(matches!(of(&[]), Ok(Credentials::None)));
        assert!(matches!(of(&[("LARDER_TOKEN", "")]), Ok(Credentials::None)));
        assert!(matches!(of(&[("LARDER_TOKEN", "t")]), Ok(Credentials::Token(_))));
        let keys = [("LARDER_ACCESS_KEY", "a"), ("LARDER_SECRET_KEY", "s3cret")];
        let shown = format!("{:?}", of(&keys).unwrap());
        assert!(shown.contains("redacted") && !shown.contains("s3cret"), "{shown}");
        assert_eq!(of(&keys[..1]).unwrap_err(), CredentialsError::Half);
        assert_eq!(of(&[keys[0], keys[1], ("LARDER_TOKEN", "t")]).unwrap_err(), CredentialsError::Twice);
        let line = [("LARDER_TOKEN", "t\r\nX: y")];
        assert_eq!(of(&line).unwrap_err(), CredentialsError::Characters("LARDER_TOKEN"));
    }
}
