//! `cache.json.sig`: the signature of a sealed volume, and the rules by which it is trusted.
//!
//! ```json
//! {"version":2,"key":"MCowBQYDK2VwAyEA…","name":"web","created":"2026-11-29T20:00:00Z","sequence":17,"signature":"…"}
//! ```
//!
//! The signature does not cover the file itself but the lines below. They start with their purpose, so a
//! signature of the key for another purpose never counts here, or the reverse:
//!
//! ```text
//! larder cache.json 2
//! sha256:<of the bytes of cache.json>
//! name web
//! created 2026-11-29T20:00:00Z
//! sequence 17
//! ```
//!
//! If a volume was signed without a name, the file has no `name`, and nothing follows `name ` in the signed
//! text. Version 1, of older Larder releases, signs only the first two lines. It is still valid, but it fails
//! every check of a name or an age.
//!
//! The signature is 64 bytes (RFC 8032, Ed25519 without prehash) in base64. The key in the file only
//! identifies the signer: anyone who can write to the volume can write any key there.
//! can write the volume can write any.

mod statement;

use serde::{Deserialize, Serialize};

pub use statement::Statement;

use super::class::Class;
use super::digest::Digest;
use super::escape::escape;
use super::key::{KeyId, PublicKey, SigningKey};
use chrono::{DateTime, Utc};

/// The version of the format without a statement.
const VERSION_WITHOUT_STATEMENT: u32 = 1;
/// The version that Larder writes.
const VERSION: u32 = 2;

/// The content of `cache.json.sig`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealSignature {
    version: u32,
    /// Public key of the signer.
    pub key: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    name: Option<String>,
    /// Time in RFC 3339, UTC, with seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sequence: Option<u64>,
    #[serde(with = "base64_64")]
    signature: [u8; 64],
}

impl SealSignature {
    /// Signs this `cache.json`, with the claims of the key ([`SigningKey::with_claims`]).
    pub fn new(cache_json: &[u8], key: &SigningKey) -> Self {
        let statement = key.claims().map(|claims| Statement::now(claims.clone()));
        let signature = key.sign(signed(cache_json, statement.as_ref()).as_bytes());
        let (version, key) =
            (if statement.is_some() { VERSION } else { VERSION_WITHOUT_STATEMENT }, key.public());
        let (name, created, sequence) = match statement {
            Some(statement) => {
                (statement.name.clone(), Some(statement.created_text()), Some(statement.sequence))
            }
            None => (None, None, None),
        };
        SealSignature { version, key, name, created, sequence, signature }
    }

    /// Parses the file.
    ///
    /// # Errors
    /// Returns [`TrustError::Malformed`] if the file is not a signature of a supported version.
    pub fn parse(json: &[u8]) -> Result<Self, TrustError> {
        let malformed = |what: &str| TrustError::Malformed(what.to_owned());
        let signature: SealSignature =
            serde_json::from_slice(json).map_err(|e| TrustError::Malformed(e.to_string()))?;
        let has_none =
            signature.name.is_none() && signature.created.is_none() && signature.sequence.is_none();
        match signature.version {
            VERSION_WITHOUT_STATEMENT if has_none => Ok(signature),
            VERSION_WITHOUT_STATEMENT => Err(malformed("version 1 must not have a name, time or sequence")),
            VERSION if signature.statement().is_some() => Ok(signature),
            VERSION => Err(malformed(
                "version 2 must have a creation time (RFC 3339, UTC, seconds), a sequence number and a name without control characters",
            )),
            given => Err(TrustError::Malformed(format!(
                "it has version {given}, but this larder reads versions {VERSION_WITHOUT_STATEMENT} and {VERSION}"
            ))),
        }
    }

    /// Returns the bytes of the file.
    ///
    /// # Errors
    /// Returns an error if JSON serialization fails.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Returns the statement about the volume; `None` in version 1, which has none.
    pub fn statement(&self) -> Option<Statement> {
        Statement::parse(self.name.as_deref(), self.created.as_deref()?, self.sequence?)
    }

    /// Reports whether the key in the file signed this `cache.json` and the statement.
    pub fn holds(&self, cache_json: &[u8]) -> bool {
        self.key.verifies(signed(cache_json, self.statement().as_ref()).as_bytes(), &self.signature)
    }
}

/// Returns the text that is signed.
fn signed(cache_json: &[u8], statement: Option<&Statement>) -> String {
    let (version, stated) = match statement {
        Some(statement) => (VERSION, statement.lines()),
        None => (VERSION_WITHOUT_STATEMENT, String::new()),
    };
    format!("larder cache.json {version}\n{}\n{stated}", Digest::sha256(cache_json))
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

/// The requirements for trusting a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Trusted keys; if empty, any key is accepted unless a signature is required.
    pub keys: Vec<PublicKey>,
    /// `true` if a volume must be signed by one of [`keys`](Trust::keys).
    pub required: bool,
    /// The name that must be signed; `None` for any name.
    pub name: Option<String>,
    /// The earliest creation time that is accepted; `None` for any time.
    pub not_older_than: Option<DateTime<Utc>>,
}

impl Trust {
    /// Requires a signature by one of these keys, or none if the list is empty.
    pub fn only(keys: Vec<PublicKey>) -> Self {
        Trust { required: !keys.is_empty(), keys, ..Trust::default() }
    }

    /// Checks a volume by the bytes of its `cache.json` and of the signature next to it. Returns the ID of
    /// the signing key, or `None` if the volume is not signed.
    ///
    /// An existing signature must be valid even if none is required, and must be by one of the keys if there
    /// are keys.
    ///
    /// # Errors
    /// Returns [`TrustError`] if the volume does not meet the requirements.
    pub fn judge(&self, cache_json: &[u8], signature: Option<&[u8]>) -> Result<Option<KeyId>, TrustError> {
        let trusted = || self.keys.iter().map(PublicKey::id).collect();
        let Some(signature) = signature else {
            let needs = self.required || self.name.is_some() || self.not_older_than.is_some();
            return if needs { Err(TrustError::NotSigned { trusted: trusted() }) } else { Ok(None) };
        };
        let signature = SealSignature::parse(signature)?;
        let key = signature.key.id();
        if !self.keys.contains(&signature.key) && (self.required || !self.keys.is_empty()) {
            return Err(TrustError::UnknownKey { key, trusted: trusted() });
        }
        if !signature.holds(cache_json) {
            return Err(TrustError::InvalidSignature { key });
        }
        self.compare(signature.statement()).map(|()| Some(key))
    }

    /// Compares the signed statement with the required name and age.
    fn compare(&self, statement: Option<Statement>) -> Result<(), TrustError> {
        if self.name.is_none() && self.not_older_than.is_none() {
            return Ok(());
        }
        let statement = statement.ok_or(TrustError::NoStatement)?;
        if let Some(wanted) = &self.name
            && statement.name.as_ref() != Some(wanted)
        {
            return Err(TrustError::WrongName { wanted: wanted.clone(), found: statement.name });
        }
        match self.not_older_than {
            Some(wanted) if statement.created < wanted => {
                Err(TrustError::TooOld { wanted, created: statement.created })
            }
            _ => Ok(()),
        }
    }
}

/// The error for a volume that is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The volume is not signed, but must be.
    #[error("it is not signed, but must be signed by {}: build it with --sign-key", list(trusted))]
    NotSigned {
        /// IDs of the trusted keys.
        trusted: Vec<KeyId>,
    },
    /// The volume is signed by a key that is not trusted.
    #[error(
        "it is signed by {key}, but must be signed by {}: also give that key if it is yours",
        list(trusted)
    )]
    UnknownKey {
        /// ID of the signing key.
        key: KeyId,
        /// IDs of the trusted keys.
        trusted: Vec<KeyId>,
    },
    /// The signature covers neither name nor time.
    #[error(
        "its signature has version 1, which has no name and no time\nbuild it again with this larder, or omit --name and --not-older-than"
    )]
    NoStatement,
    /// The volume is signed for another name.
    #[error("it is signed {}, but {:?} is required: it is another cache", of(found.as_deref()), escape(wanted))]
    WrongName {
        /// The required name.
        wanted: String,
        /// The signed name, if any.
        found: Option<String>,
    },
    /// The volume was signed before the earliest accepted time.
    #[error(
        "it was signed at {}, but must not be older than {}: get a newer one",
        statement::text(created),
        statement::text(wanted)
    )]
    TooOld {
        /// The earliest accepted time.
        wanted: DateTime<Utc>,
        /// The signed creation time.
        created: DateTime<Utc>,
    },
    /// The signature is not valid for this `cache.json`.
    #[error("its signature by {key} is invalid: cache.json or cache.json.sig was changed after the seal")]
    InvalidSignature {
        /// ID of the key in the file.
        key: KeyId,
    },
    /// `cache.json.sig` is malformed.
    #[error("its cache.json.sig is malformed: {0}")]
    Malformed(String),
}

impl TrustError {
    /// Returns the class of the error, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            TrustError::NotSigned { .. }
            | TrustError::UnknownKey { .. }
            | TrustError::NoStatement
            | TrustError::WrongName { .. }
            | TrustError::TooOld { .. } => Class::Denied,
            TrustError::InvalidSignature { .. } | TrustError::Malformed(_) => Class::Corrupt,
        }
    }
}

fn of(name: Option<&str>) -> String {
    name.map_or_else(|| "without a name".to_owned(), |name| format!("for the name {:?}", escape(name)))
}

fn list(keys: &[KeyId]) -> String {
    match keys {
        [] => "a trusted key (none was given)".to_owned(),
        keys => keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::Claims;

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
            Trust { keys, required, ..Trust::default() }.judge(CACHE, signature)
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
            ("\"version\":1", "\"version\":3"),
            ("\"version\":1", "\"version\":1,\"sequence\":1"),
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

    fn key_with_name(name: Option<&str>) -> SigningKey {
        key().with_claims(Claims { name: name.map(str::to_owned), sequence: Some(17) })
    }

    #[test]
    fn names_and_times_are_compared() {
        let before = Utc::now() - chrono::TimeDelta::seconds(2);
        let key = key_with_name(Some("web"));
        let judge = |key: &SigningKey, json: &[u8], name: Option<&str>, not_older_than| {
            let name = name.map(str::to_owned);
            let trust = Trust { name, not_older_than, ..Trust::only(vec![key.public()]) };
            trust.judge(CACHE, Some(json)).map(|by| by.is_some())
        };
        let json = SealSignature::new(CACHE, &key).to_json().unwrap();
        let after = Utc::now() + chrono::TimeDelta::seconds(2);
        assert_eq!(judge(&key, &json, None, None), Ok(true));
        assert_eq!(judge(&key, &json, Some("web"), Some(before)), Ok(true));
        assert!(matches!(judge(&key, &json, Some("db"), None), Err(TrustError::WrongName { .. })));
        assert!(matches!(judge(&key, &json, Some("web"), Some(after)), Err(TrustError::TooOld { .. })));
        let nameless = key_with_name(None);
        let json = SealSignature::new(CACHE, &nameless).to_json().unwrap();
        assert_eq!(judge(&nameless, &json, None, Some(before)), Ok(true));
        assert!(matches!(judge(&nameless, &json, Some("web"), None), Err(TrustError::WrongName { .. })));
        // A signature of an older Larder release.
        let bare = self::key();
        let json = SealSignature::new(CACHE, &bare).to_json().unwrap();
        assert_eq!(judge(&bare, &json, None, None), Ok(true));
        assert_eq!(judge(&bare, &json, Some("web"), None), Err(TrustError::NoStatement));
        assert_eq!(judge(&bare, &json, None, Some(before)), Err(TrustError::NoStatement));
        let unsigned = Trust { name: Some("web".to_owned()), ..Trust::default() };
        assert!(matches!(unsigned.judge(CACHE, None), Err(TrustError::NotSigned { .. })));
    }

    #[test]
    fn a_statement_is_signed_with_the_file() {
        let key = key_with_name(Some("web"));
        let text = String::from_utf8(SealSignature::new(CACHE, &key).to_json().unwrap()).unwrap();
        let trust = Trust::only(vec![key.public()]);
        let judge = |from: &str, to: &str| {
            assert!(text.contains(from), "{text}");
            trust.judge(CACHE, Some(text.replace(from, to).as_bytes()))
        };
        judge("web", "web").unwrap();
        for (from, to) in [("\"web\"", "\"db\""), ("\"name\":\"web\",", ""), (":17", ":18"), ("\"20", "\"19")]
        {
            assert!(matches!(judge(from, to), Err(TrustError::InvalidSignature { .. })), "{from}");
        }
        // A name with an additional line, and other forms of the same time.
        for (from, to) in
            [("web", "web\\nsequence 18"), ("Z\"", "z\""), ("Z\"", "+00:00\""), ("Z\"", ".0Z\"")]
        {
            assert!(matches!(judge(from, to), Err(TrustError::Malformed(_))), "{from}");
        }
        // A removed statement.
        let bare = text.replace("\"version\":2", "\"version\":1");
        let start = bare.find("\"name\"").unwrap();
        let end = bare.find("\"signature\"").unwrap();
        let bare = format!("{}{}", &bare[..start], &bare[end..]);
        assert!(matches!(
            trust.judge(CACHE, Some(bare.as_bytes())),
            Err(TrustError::InvalidSignature { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_err(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Trust::default().judge(CACHE, Some(&bytes)).is_err());
        }

        /// Changing any bit of the file or the signature makes the signature invalid.
        #[test]
        fn every_bit_counts(content in prop::collection::vec(any::<u8>(), 1..100), at: prop::sample::Index, bit in 0u8..8) {
            let key = if content.len() % 2 == 0 { key() } else { key_with_name(Some("web")) };
            let trust = Trust::only(vec![key.public()]);
            let json = SealSignature::new(&content, &key).to_json().unwrap();
            prop_assert!(trust.judge(&content, Some(&json)).is_ok());
            let mut other = content.clone();
            let place = at.index(other.len());
            other[place] ^= 1 << bit;
            prop_assert!(trust.judge(&other, Some(&json)).is_err());
            // The line break at the end does not count.
            let mut changed = json;
            let place = at.index(changed.len() - 1);
            changed[place] ^= 1 << bit;
            prop_assert!(trust.judge(&content, Some(&changed)).is_err());
        }
    }
}
