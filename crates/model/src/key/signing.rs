//! Private keys, which sign volumes.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::{Claims, LEN, PublicKey};
use crate::class::Class;
use crate::credential::Secret;

/// DER prefix of a private key: PKCS#8 version 1 (RFC 5958) with the algorithm 1.3.101.112 (RFC 8410, 7).
/// ring would write version 2, which OpenSSL does not read.
const PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A private key, whose `Debug` output is redacted, and the claims to sign for each volume.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    claims: Option<Claims>,
}

/// The error for a key that cannot be read or generated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningKeyError {
    /// The text is not a PKCS#8 PEM, or is encrypted.
    #[error(
        "it is not an unencrypted private key in PKCS#8: want a PEM from `larder key generate` or \
         `openssl genpkey -algorithm ed25519`"
    )]
    NoKey,
    /// The key has another algorithm or is damaged.
    #[error("it is not an Ed25519 key: {0}")]
    Rejected(String),
    /// The kernel did not provide random bytes.
    #[error("cannot get random bytes from the kernel")]
    Random,
}

impl SigningKeyError {
    /// Returns the class of the error, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            SigningKeyError::NoKey | SigningKeyError::Rejected(_) => Class::Invalid,
            SigningKeyError::Random => Class::Internal,
        }
    }
}

impl SigningKey {
    /// Generates a new key. Returns it with its PEM, which the caller must store.
    ///
    /// # Errors
    /// Returns [`SigningKeyError::Random`] if the kernel provides no random bytes.
    pub fn generate() -> Result<(Self, Secret), SigningKeyError> {
        let mut seed = [0; LEN];
        SystemRandom::new().fill(&mut seed).map_err(|_| SigningKeyError::Random)?;
        let der = [&PREFIX[..], &seed].concat();
        let base64 = STANDARD.encode(&der);
        let pem = Secret::new(format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n"));
        Ok((Self::from_der(&der)?, pem))
    }

    /// Parses a key in a PEM of any PKCS#8 version.
    ///
    /// # Errors
    /// Returns [`SigningKeyError`] if the text is not an unencrypted Ed25519 key.
    pub fn parse(pem: &[u8]) -> Result<Self, SigningKeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| SigningKeyError::NoKey)?;
        Self::from_der(der.secret_pkcs8_der())
    }

    fn from_der(der: &[u8]) -> Result<Self, SigningKeyError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der);
        pair.map(|pair| SigningKey { pair, claims: None })
            .map_err(|e| SigningKeyError::Rejected(e.to_string()))
    }

    /// Sets the claims that are signed for each volume.
    #[must_use]
    pub fn with_claims(self, claims: Claims) -> Self {
        SigningKey { claims: Some(claims), ..self }
    }

    /// Returns the claims for each volume; `None` to sign only `cache.json`.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// Returns the public half of the key.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs `message` with the key.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey([redacted] of {})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_key_reads_back_and_signs() {
        let (key, pem) = SigningKey::generate().unwrap();
        let read = SigningKey::parse(pem.expose().as_bytes()).unwrap();
        assert_eq!(read.public(), key.public());
        assert!(key.public().verifies(b"message", &read.sign(b"message")));
        assert!(!key.public().verifies(b"other", &read.sign(b"message")));
        let (other, _) = SigningKey::generate().unwrap();
        assert!(!other.public().verifies(b"message", &key.sign(b"message")));
    }

    /// RFC 8032, 7.1, TEST 1 and TEST 2.
    #[test]
    fn known_signatures() {
        let bytes = |hex: &str| -> Vec<u8> {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap()).collect()
        };
        for (seed, public, message, signature) in [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
        ] {
            let key = SigningKey::from_der(&[&PREFIX[..], &bytes(seed)].concat()).unwrap();
            assert_eq!(key.public().0.to_vec(), bytes(public));
            assert_eq!(key.sign(&bytes(message)).to_vec(), bytes(signature));
        }
    }

    #[test]
    fn malformed_private_keys_are_refused() {
        let (key, pem) = SigningKey::generate().unwrap();
        let pem = pem.expose();
        let parse = |text: &str| SigningKey::parse(text.as_bytes()).map(|key| key.public());
        assert_eq!(parse(&key.public().pem()), Err(SigningKeyError::NoKey));
        assert_eq!(parse(&pem.replace("PRIVATE", "ENCRYPTED PRIVATE")), Err(SigningKeyError::NoKey));
        assert_eq!(parse(""), Err(SigningKeyError::NoKey));
        let x25519 = pem.replace("BQYDK2Vw", "BQYDK2Vu");
        assert!(matches!(parse(&x25519), Err(SigningKeyError::Rejected(_))));
        assert_eq!(parse(&x25519).unwrap_err().class(), Class::Invalid);
    }

    #[test]
    fn debug_output_is_redacted() {
        let (key, pem) = SigningKey::generate().unwrap();
        let base64 = pem.expose().lines().nth(1).unwrap().to_owned();
        let shown = format!("{key:?} {pem:?} {:?}", std::sync::Arc::new(&key));
        assert!(!shown.contains(&base64[22..]) && shown.contains("[redacted]"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_err(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = SigningKey::parse(&bytes);
            let _ = SigningKey::from_der(&bytes);
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(&bytes));
            let _ = SigningKey::parse(pem.as_bytes());
        }

        #[test]
        fn a_changed_key_is_no_key_or_another(seed: [u8; LEN], at in 0usize..48, bit in 0u8..8) {
            let der = [&PREFIX[..], &seed].concat();
            let whole = SigningKey::from_der(&der).unwrap().public();
            let mut changed = der;
            changed[at] ^= 1 << bit;
            if let Ok(key) = SigningKey::from_der(&changed) {
                prop_assert_ne!(key.public(), whole);
            }
        }
    }
}
