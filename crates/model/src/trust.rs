//! `cache.json.sig`: who vouches for a sealed volume and what for, and whom one believes.
//!
//! ```json
//! {"version":2,"key":"MCowBQYDK2VwAyEA…","name":"web","created":"2026-11-29T20:00:00Z","sequence":17,"signature":"…"}
//! ```
//!
//! Signed is not the file but what is said of it, lines that begin with what they are for, so that a signature of this key over
//! something else never counts here, nor this one elsewhere:
//!
//! ```text
//! larder cache.json 2
//! sha256:<of the bytes of cache.json>
//! name web
//! created 2026-11-29T20:00:00Z
//! sequence 17
//! ```
//!
//! A volume that was signed without a name has none in the file and nothing after `name `. Version 1, which Larder wrote before, has
//! the first two lines alone; it still holds, and fails every check of a name or an age.
//!
//! The signature is 64 bytes (RFC 8032, Ed25519 without prehash) in base64. The key in the file only says which one is meant: who
//! can write the volume can write any.

mod statement;

use serde::{Deserialize, Serialize};

pub use statement::{Claims, Statement};

use super::class::Class;
use super::digest::Digest;
use super::escape::escape;
use super::key::{KeyId, PublicKey, SigningKey};
use chrono::{DateTime, Utc};

/// The version without a statement.
const BARE: u32 = 1;
/// The version that is written.
const VERSION: u32 = 2;

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealSignature {
    version: u32,
    /// Who signed.
    pub key: PublicKey,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    name: Option<String>,
    /// RFC 3339 in UTC, with seconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    sequence: Option<u64>,
    #[serde(with = "base64_64")]
    signature: [u8; 64],
}

impl SealSignature {
    /// Signs the volume of this `cache.json`, and states what the key is for ([`SigningKey::stating`]).
    pub fn new(cache_json: &[u8], key: &SigningKey) -> Self {
        let statement = key.claims().map(|claims| Statement::now(claims.clone()));
        let signature = key.sign(signed(cache_json, statement.as_ref()).as_bytes());
        let (version, key) = (if statement.is_some() { VERSION } else { BARE }, key.public());
        let (name, created, sequence) = match statement {
            Some(statement) => {
                (statement.name.clone(), Some(statement.created_text()), Some(statement.sequence))
            }
            None => (None, None, None),
        };
        SealSignature { version, key, name, created, sequence, signature }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// [`TrustError::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, TrustError> {
        let malformed = |what: &str| TrustError::Malformed(what.to_owned());
        let signature: SealSignature =
            serde_json::from_slice(json).map_err(|e| TrustError::Malformed(e.to_string()))?;
        let has_none =
            signature.name.is_none() && signature.created.is_none() && signature.sequence.is_none();
        match signature.version {
            BARE if has_none => Ok(signature),
            BARE => Err(malformed("version 1 has no name, time or sequence")),
            VERSION if signature.statement().is_some() => Ok(signature),
            VERSION => Err(malformed(
                "version 2 has a time of creation (RFC 3339, UTC, seconds), a sequence number and a name without control characters",
            )),
            given => Err(TrustError::Malformed(format!(
                "it has version {given}, this larder reads versions {BARE} and {VERSION}"
            ))),
        }
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// Those of writing JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// What is stated of the volume; `None` in version 1, which states nothing.
    pub fn statement(&self) -> Option<Statement> {
        Statement::parse(self.name.as_deref(), self.created.as_deref()?, self.sequence?)
    }

    /// Whether the key that it names signed this `cache.json`, and what is stated of it.
    pub fn holds(&self, cache_json: &[u8]) -> bool {
        self.key.verifies(signed(cache_json, self.statement().as_ref()).as_bytes(), &self.signature)
    }
}

/// What is signed.
fn signed(cache_json: &[u8], statement: Option<&Statement>) -> String {
    let (version, stated) = match statement {
        Some(statement) => (VERSION, statement.lines()),
        None => (BARE, String::new()),
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

/// Whom one believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Keys; with none, whoever signed is believed to be it.
    pub keys: Vec<PublicKey>,
    /// Whether a volume has to be signed, and by one of [`keys`](Trust::keys).
    pub required: bool,
    /// The name that has to be signed; `None` for any.
    pub name: Option<String>,
    /// The earliest time of creation that is accepted; `None` for any.
    pub not_older_than: Option<DateTime<Utc>>,
}

impl Trust {
    /// A signature by one of these keys is required; by none, where there is none.
    pub fn only(keys: Vec<PublicKey>) -> Self {
        Trust { required: !keys.is_empty(), keys, ..Trust::default() }
    }

    /// Judges a volume by the bytes of its `cache.json` and of the signature beside it. The answer is who signed.
    ///
    /// A signature that is there has to hold, and to be by one of the keys, if there are keys, even where none is required.
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
            return Err(TrustError::DoesNotHold { key });
        }
        self.compare(signature.statement()).map(|()| Some(key))
    }

    /// Compares what was signed with what was asked for.
    fn compare(&self, statement: Option<Statement>) -> Result<(), TrustError> {
        if self.name.is_none() && self.not_older_than.is_none() {
            return Ok(());
        }
        let statement = statement.ok_or(TrustError::NoStatement)?;
        if let Some(wanted) = &self.name
            && statement.name.as_ref() != Some(wanted)
        {
            return Err(TrustError::OtherName { wanted: wanted.clone(), found: statement.name });
        }
        match self.not_older_than {
            Some(wanted) if statement.created < wanted => {
                Err(TrustError::TooOld { wanted, created: statement.created })
            }
            _ => Ok(()),
        }
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
    /// It is signed, and its name and time are not.
    #[error(
        "its signature has version 1, which states no name and no time\nbuild it again with this larder, or leave out --name and --not-older-than"
    )]
    NoStatement,
    /// It is signed for another name.
    #[error("it is signed {}, and {:?} is wanted: it is another cache", of(found.as_deref()), escape(wanted))]
    OtherName {
        /// The name that was asked for.
        wanted: String,
        /// The name that was signed, if any.
        found: Option<String>,
    },
    /// It was signed before the time that was asked for.
    #[error(
        "it was signed at {}, and one not older than {} is wanted: get a newer one",
        statement::text(created),
        statement::text(wanted)
    )]
    TooOld {
        /// The time that was asked for.
        wanted: DateTime<Utc>,
        /// The time that was signed.
        created: DateTime<Utc>,
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
            TrustError::NotSigned { .. }
            | TrustError::UnknownKey { .. }
            | TrustError::NoStatement
            | TrustError::OtherName { .. }
            | TrustError::TooOld { .. } => Class::Denied,
            TrustError::DoesNotHold { .. } | TrustError::Malformed(_) => Class::Corrupt,
        }
    }
}

fn of(name: Option<&str>) -> String {
    name.map_or_else(|| "without a name".to_owned(), |name| format!("for the name {:?}", escape(name)))
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

    fn stating(name: Option<&str>) -> SigningKey {
        key().stating(Claims { name: name.map(str::to_owned), sequence: Some(17) })
    }

    #[test]
    fn names_and_times_are_compared() {
        let before = Utc::now() - chrono::TimeDelta::seconds(2);
        let key = stating(Some("web"));
        let judge = |key: &SigningKey, json: &[u8], name: Option<&str>, not_older_than| {
            let name = name.map(str::to_owned);
            let trust = Trust { name, not_older_than, ..Trust::only(vec![key.public()]) };
            trust.judge(CACHE, Some(json)).map(|by| by.is_some())
        };
        let json = SealSignature::new(CACHE, &key).to_json().unwrap();
        let after = Utc::now() + chrono::TimeDelta::seconds(2);
        assert_eq!(judge(&key, &json, None, None), Ok(true));
        assert_eq!(judge(&key, &json, Some("web"), Some(before)), Ok(true));
        assert!(matches!(judge(&key, &json, Some("db"), None), Err(TrustError::OtherName { .. })));
        assert!(matches!(judge(&key, &json, Some("web"), Some(after)), Err(TrustError::TooOld { .. })));
        let nameless = stating(None);
        let json = SealSignature::new(CACHE, &nameless).to_json().unwrap();
        assert_eq!(judge(&nameless, &json, None, Some(before)), Ok(true));
        assert!(matches!(judge(&nameless, &json, Some("web"), None), Err(TrustError::OtherName { .. })));
        // What an older larder signed.
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
        let key = stating(Some("web"));
        let text = String::from_utf8(SealSignature::new(CACHE, &key).to_json().unwrap()).unwrap();
        let trust = Trust::only(vec![key.public()]);
        let judge = |from: &str, to: &str| {
            assert!(text.contains(from), "{text}");
            trust.judge(CACHE, Some(text.replace(from, to).as_bytes()))
        };
        judge("web", "web").unwrap();
        for (from, to) in [("\"web\"", "\"db\""), ("\"name\":\"web\",", ""), (":17", ":18"), ("\"20", "\"19")]
        {
            assert!(matches!(judge(from, to), Err(TrustError::DoesNotHold { .. })), "{from}");
        }
        // A line that says more, and other words for the same time.
        for (from, to) in
            [("web", "web\\nsequence 18"), ("Z\"", "z\""), ("Z\"", "+00:00\""), ("Z\"", ".0Z\"")]
        {
            assert!(matches!(judge(from, to), Err(TrustError::Malformed(_))), "{from}");
        }
        // A statement that is left out.
        let bare = text.replace("\"version\":2", "\"version\":1");
        let start = bare.find("\"name\"").unwrap();
        let end = bare.find("\"signature\"").unwrap();
        let bare = format!("{}{}", &bare[..start], &bare[end..]);
        assert!(matches!(trust.judge(CACHE, Some(bare.as_bytes())), Err(TrustError::DoesNotHold { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Trust::default().judge(CACHE, Some(&bytes)).is_err());
        }

        /// Whatever byte of file or signature is another one, nobody vouches for it.
        #[test]
        fn every_bit_counts(content in prop::collection::vec(any::<u8>(), 1..100), at: prop::sample::Index, bit in 0u8..8) {
            let key = if content.len() % 2 == 0 { key() } else { stating(Some("web")) };
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
