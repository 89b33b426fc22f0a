//! Ed25519 keys (RFC 8032) that sign volumes, in the formats that OpenSSL writes (RFC 8410).
//!
//! A public key is a SubjectPublicKeyInfo: 44 bytes of DER, or 60 characters of base64. The base64 is the
//! one-line form; between the header and footer of a PEM it is a file. Its ID is the sha256 of the DER:
//! `openssl pkey -pubin -in FILE -outform DER | sha256sum`.
//!
//! The arithmetic is that of ring, which is already a dependency of rustls and runs in constant time. It
//! refuses a private key file whose public half belongs to another key.

mod claims;
mod signing;

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use super::digest::Digest;

pub use claims::Claims;
pub use signing::{SigningKey, SigningKeyError};

/// The ID of a key: sha256 of its SubjectPublicKeyInfo.
pub type KeyId = Digest;

/// Length of the bare key, bytes.
const LEN: usize = 32;

/// DER prefix of a public key: a sequence of the algorithm 1.3.101.112 and a bit string.
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A public key. Its text form is one line of base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; LEN]);

/// The error for a text that is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// The text is neither a base64 line nor a PEM.
    #[error(
        "it is not an Ed25519 public key: want the line that `larder key public` prints, or a PEM from `openssl pkey -pubout`"
    )]
    NoKey,
    /// The text is a private key.
    #[error("it is a private key: give the public key, which `larder key public` prints")]
    Private,
}

impl PublicKey {
    /// Returns the ID of the key.
    pub fn id(&self) -> KeyId {
        Digest::sha256(&self.der())
    }

    /// Reports whether `signature` is a valid signature of this key over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }

    /// Returns the key as PEM.
    pub fn pem(&self) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{self}\n-----END PUBLIC KEY-----\n")
    }

    /// Parses the keys in a file: a sequence of PEMs, or one key per line. Lines that start with `#` are
    /// comments.
    ///
    /// # Errors
    /// Returns [`ParseKeyError`] if the file has no key, a malformed key, or a private key.
    pub fn parse_file(text: &str) -> Result<Vec<Self>, ParseKeyError> {
        if text.contains("PRIVATE KEY-----") {
            return Err(ParseKeyError::Private);
        }
        let keys: Result<Vec<Self>, _> = if text.contains("-----BEGIN") {
            let sections = SubjectPublicKeyInfoDer::pem_slice_iter(text.as_bytes());
            sections.map(|der| Self::from_der(&der.map_err(|_| ParseKeyError::NoKey)?)).collect()
        } else {
            let lines = text.lines().map(str::trim);
            lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::parse).collect()
        };
        keys.and_then(|keys| if keys.is_empty() { Err(ParseKeyError::NoKey) } else { Ok(keys) })
    }

    /// Reports whether a text is a key instead of a file name, by the prefix that every key has.
    pub fn begins(text: &str) -> bool {
        text.starts_with("MCowBQYDK2VwAyEA")
    }

    fn der(&self) -> Vec<u8> {
        [&PREFIX[..], &self.0].concat()
    }

    fn from_der(der: &[u8]) -> Result<Self, ParseKeyError> {
        let key = der.strip_prefix(&PREFIX).and_then(|key| key.try_into().ok());
        key.map(PublicKey).ok_or(ParseKeyError::NoKey)
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        Self::from_der(&STANDARD.decode(line).map_err(|_| ParseKeyError::NoKey)?)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = ParseKeyError;

    fn try_from(line: String) -> Result<Self, Self::Error> {
        line.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.der()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 8410, 10.1.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";

    #[test]
    fn the_key_of_the_rfc() {
        let keys = PublicKey::parse_file(PEM).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0].pem(), PEM);
        let line = PEM.lines().nth(1).unwrap();
        assert!(PublicKey::begins(line));
        assert_eq!(line.parse(), Ok(keys[0]));
        assert_eq!(PublicKey::parse_file(&format!("# ours\n\n {line}\n{line}\n")), Ok(vec![keys[0]; 2]));
        assert_eq!(PublicKey::parse_file(&PEM.repeat(3)), Ok(vec![keys[0]; 3]));
    }

    #[test]
    fn malformed_keys_are_refused() {
        let of_another_length = STANDARD.encode([&PREFIX[..], &[0; 31]].concat());
        let of_x25519 = PEM.replace("BQYDK2Vw", "BQYDK2Vu");
        let cut = &PEM[..PEM.len() - 10];
        for text in ["", "# none\n", "ssh-ed25519 AAAA", &of_another_length, &of_x25519, cut] {
            assert_eq!(PublicKey::parse_file(text), Err(ParseKeyError::NoKey), "{text}");
        }
        let private = PEM.replace("PUBLIC", "PRIVATE");
        assert_eq!(PublicKey::parse_file(&private), Err(ParseKeyError::Private));
        assert_eq!(PublicKey::parse_file(&format!("{PEM}{private}")), Err(ParseKeyError::Private));
    }

    proptest! {
        #[test]
        fn every_key_survives_its_text(bytes: [u8; LEN]) {
            let key = PublicKey(bytes);
            prop_assert_eq!(key.to_string().parse(), Ok(key));
            prop_assert_eq!(PublicKey::parse_file(&key.pem()), Ok(vec![key]));
        }

        /// Each key has exactly one text form.
        #[test]
        fn no_other_text_is_a_key(bytes: [u8; LEN], at in 0usize..60, other in any::<char>()) {
            let text = PublicKey(bytes).to_string();
            let mut changed: Vec<char> = text.chars().collect();
            changed[at] = other;
            let changed: String = changed.into_iter().collect();
            if let Ok(key) = changed.parse::<PublicKey>() {
                prop_assert_eq!(key.to_string(), changed);
            }
        }

        #[test]
        fn any_text_parses_or_errs(text in "(-----BEGIN [A-Z ]{0,20}-----\n)?\\PC{0,200}(\n-----END [A-Z ]{0,20}-----)?") {
            if let Ok(keys) = PublicKey::parse_file(&text) {
                prop_assert!(!keys.is_empty());
            }
        }
    }
}
