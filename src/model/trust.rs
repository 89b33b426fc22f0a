//! `cache.json.sig`: who vouches for a sealed volume, and whom one believes.
//!
//! ```json
//! {"version":1,"key":"MCowBQYDK2VwAyEA…","signature":"…"}
//! ```
//!
//! Signed is not the file but what is said of it, two lines that begin with what they are for, so that a signature of this key
//! over something else never counts here, nor this one elsewhere:
//!
//! ```text
//! larder cache.json 1
//! sha256:<of the bytes of cache.json>
//! ```
//!
//! The signature is 64 bytes (RFC 8032, Ed25519 without prehash) in base64. The key in the file only says which one is meant: who
//! can write the volume can write any.

use serde::{Deserialize, Serialize};

use super::class::Class;
use super::digest::Digest;
use super::key::{KeyId, PublicKey, SigningKey};

/// The version of the format that this build reads and writes.
const VERSION: u32 = 1;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealSignature {
    version: u32,
    /// Who signed.
    pub key: PublicKey,
    #[serde(with = "base64_64")]
    signature: [u8; 64],
}

impl SealSignature {
    /// Signs the volume of this `cache.json`.
    pub fn new(cache_json: &[u8], key: &SigningKey) -> Self {
        let signature = key.sign(statement(cache_json).as_bytes());
        SealSignature { version: VERSION, key: key.public(), signature }
    }

    /// Reads the file.
    pub fn parse(json: &[u8]) -> Result<Self, TrustError> {
        let signature: SealSignature =
            serde_json::from_slice(json).map_err(|e| TrustError::Malformed(e.to_string()))?;
        match signature.version {
            VERSION => Ok(signature),
            given => Err(TrustError::Malformed(format!(
                "it has version {given}, this larder reads version {VERSION}"
            ))),
        }
    }

    /// The bytes of the file.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Whether the key that it names signed this `cache.json`.
    pub fn holds(&self, cache_json: &[u8]) -> bool {
        self.key.verifies(statement(cache_json).as_bytes(), &self.signature)
    }
}

/// What is signed.
fn statement(cache_json: &[u8]) -> String {
    format!("larder cache.json {VERSION}\n{}\n", Digest::sha256(cache_json))
}

mod base64_64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 64], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 64], D::Error> {
        let bytes =
            STANDARD.decode(String::deserialize(from)?).map_err(|_| D::Error::custom("not base64"))?;
        bytes.try_into().map_err(|_| D::Error::custom("a signature has 64 bytes"))
    }
}

/// Whom one believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Keys; with none, whoever signed is believed to be it.
    pub keys: Vec<PublicKey>,
    /// Whether a volume has to be signed, and by one of [`keys`](Trust::keys).
    pub required: bool,
}

impl Trust {
    /// A signature by one of these keys is required; by none, where there is none.
    pub fn only(keys: Vec<PublicKey>) -> Self {
        Trust { required: !keys.is_empty(), keys }
    }

    /// Judges a volume by the bytes of its `cache.json` and of the signature beside it. The answer is who signed.
    ///
    /// A signature that is there has to hold, and to be by one of the keys, if there are keys, even where none is required.
    pub fn judge(&self, cache_json: &[u8], signature: Option<&[u8]>) -> Result<Option<KeyId>, TrustError> {
        let trusted = || self.keys.iter().map(PublicKey::id).collect();
        let Some(signature) = signature else {
            return if self.required { Err(TrustError::NotSigned { trusted: trusted() }) } else { Ok(None) };
        };
        let signature = SealSignature::parse(signature)?;
        let key = signature.key.id();
        if !self.keys.contains(&signature.key) && (self.required || !self.keys.is_empty()) {
            return Err(TrustError::UnknownKey { key, trusted: trusted() });
        }
        if signature.holds(cache_json) { Ok(Some(key)) } else { Err(TrustError::DoesNotHold { key }) }
    }
}

/// A volume is not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nobody vouches for it.
    #[error("it is not signed, and has to be by {}: build it with --sign-key", list(trusted))]
    NotSigned {
        /// Keys that are trusted.
        trusted: Vec<KeyId>,
    },
    /// Somebody does whom one does not know.
    #[error("it is signed by {key}, and only {} is trusted: give that key too if it is yours", list(trusted))]
    UnknownKey {
        /// Who signed.
        key: KeyId,
        /// Keys that are trusted.
        trusted: Vec<KeyId>,
    },
    /// The signature is of something else.
    #[error("its signature by {key} does not hold: cache.json or cache.json.sig was changed after the seal")]
    DoesNotHold {
        /// Who is said to have signed.
        key: KeyId,
    },
    /// The signature is none.
    #[error("its cache.json.sig cannot be read: {0}")]
    Malformed(String),
}

impl TrustError {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            TrustError::NotSigned { .. } | TrustError::UnknownKey { .. } => Class::Denied,
            TrustError::DoesNotHold { .. } | TrustError::Malformed(_) => Class::Corrupt,
        }
    }
}

fn list(keys: &[KeyId]) -> String {
    match keys {
        [] => "a key, of which none is given".to_owned(),
        keys => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CACHE: &[u8] = b"{\"version\":1}";

    fn key() -> SigningKey {
        SigningKey::generate().unwrap().0
    }

    #[test]
    fn who_is_trusted() {
        let (ours, theirs) = (key(), key());
        let json = SealSignature::new(CACHE, &ours).to_json().unwrap();
        let id = ours.public().id();
        let judge = |keys: &[&SigningKey], required, signature: Option<&[u8]>| {
            let keys = keys.iter().map(|key| key.public()).collect();
            Trust { keys, required }.judge(CACHE, signature)
        };
        assert_eq!(judge(&[], false, None), Ok(None));
        assert_eq!(judge(&[], false, Some(&json)), Ok(Some(id.clone())));
        assert_eq!(judge(&[&theirs, &ours], true, Some(&json)), Ok(Some(id.clone())));
        assert_eq!(judge(&[&ours], false, None), Ok(None));
        let trusted = vec![theirs.public().id()];
        let unknown = TrustError::UnknownKey { key: id, trusted: trusted.clone() };
        assert_eq!(judge(&[&theirs], true, Some(&json)), Err(unknown.clone()));
        assert_eq!(judge(&[&theirs], false, Some(&json)), Err(unknown));
        assert_eq!(judge(&[&theirs], true, None), Err(TrustError::NotSigned { trusted }));
        assert!(matches!(judge(&[], true, Some(&json)), Err(TrustError::UnknownKey { .. })));
        assert!(matches!(judge(&[], true, None), Err(TrustError::NotSigned { .. })));
    }

    #[test]
    fn a_signature_is_of_one_file_and_one_purpose() {
        let key = key();
        let signature = SealSignature::new(CACHE, &key);
        assert!(signature.holds(CACHE) && !signature.holds(b"{}"));
        let bare = SealSignature { signature: key.sign(CACHE), ..signature.clone() };
        assert!(!bare.holds(CACHE));
        let digest =
            SealSignature { signature: key.sign(Digest::sha256(CACHE).to_string().as_bytes()), ..bare };
        assert!(!digest.holds(CACHE));
        let stolen = SealSignature { key: self::key().public(), ..signature };
        assert!(!stolen.holds(CACHE));
    }

    #[test]
    fn the_form_of_the_file() {
        let json = SealSignature::new(CACHE, &key()).to_json().unwrap();
        let text = String::from_utf8(json).unwrap();
        assert!(
            text.starts_with("{\"version\":1,\"key\":\"MCowBQYDK2VwAyEA") && text.ends_with("==\"}\n"),
            "{text}"
        );
        let bad = |from: &str, to: &str| SealSignature::parse(text.replace(from, to).as_bytes()).unwrap_err();
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"version\":1,", ""),
            ("\"key\"", "\"keys\""),
            ("==\"", "\""),
            ("}", ",\"more\":1}"),
            ("MCow", "MCox"),
            ("{", "["),
        ] {
            assert!(matches!(bad(from, to), TrustError::Malformed(_)), "{from}");
        }
        assert_eq!(bad("{", "").class(), Class::Corrupt);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Trust::default().judge(CACHE, Some(&bytes)).is_err());
        }

        /// Whatever byte of file or signature is another one, nobody vouches for it.
        #[test]
        fn every_bit_counts(content in prop::collection::vec(any::<u8>(), 1..100), at: prop::sample::Index, bit in 0u8..8) {
            let key = key();
            let trust = Trust::only(vec![key.public()]);
            let json = SealSignature::new(&content, &key).to_json().unwrap();
            prop_assert!(trust.judge(&content, Some(&json)).is_ok());
            let mut other = content.clone();
            let place = at.index(other.len());
            other[place] ^= 1 << bit;
            prop_assert!(trust.judge(&other, Some(&json)).is_err());
            // The line break at the end says nothing.
            let mut changed = json;
            let place = at.index(changed.len() - 1);
            changed[place] ^= 1 << bit;
            prop_assert!(trust.judge(&content, Some(&changed)).is_err());
        }
    }
}
