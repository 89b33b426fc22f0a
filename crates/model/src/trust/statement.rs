//! What a signature states of a volume, beside its `cache.json`: which cache it is, and which of several it is.

use chrono::{DateTime, SecondsFormat, Timelike as _, Utc};

/// Maximum bytes of a name.
const MAX_NAME: usize = 255;

/// What the owner of a key says of the volumes that it signs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims {
    /// Name of the cache, if it has one.
    pub name: Option<String>,
    /// Number of the volume among those of this name, later ones higher; `None` for the seconds since 1970-01-01 UTC.
    pub sequence: Option<u64>,
}

/// What is stated of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Name of the cache, if it has one.
    pub name: Option<String>,
    /// When the volume was signed, in whole seconds.
    pub created: DateTime<Utc>,
    /// Its number among the volumes of that name.
    pub sequence: u64,
}

impl Statement {
    /// States `claims` of a volume that is signed now. A name that cannot be stated is left out: see [`is_name`].
    pub(super) fn now(claims: Claims) -> Self {
        let now = Utc::now();
        let created = now.with_nanosecond(0).unwrap_or(now);
        let sequence =
            claims.sequence.unwrap_or_else(|| u64::try_from(created.timestamp()).unwrap_or_default());
        Statement { name: claims.name.filter(|name| is_name(name)), created, sequence }
    }

    /// Reads the fields of a file; `None` if one of them is not in the only form in which it is written.
    pub(super) fn parse(name: Option<&str>, created: &str, sequence: u64) -> Option<Self> {
        let time = DateTime::parse_from_rfc3339(created).ok()?.to_utc();
        let is_sound = text(&time) == created && name.is_none_or(is_name);
        is_sound.then(|| Statement { name: name.map(str::to_owned), created: time, sequence })
    }

    pub(super) fn created_text(&self) -> String {
        text(&self.created)
    }

    /// The lines that are signed.
    pub(super) fn lines(&self) -> String {
        let name = self.name.as_deref().unwrap_or_default();
        format!("name {name}\ncreated {}\nsequence {}\n", self.created_text(), self.sequence)
    }
}

impl Claims {
    /// Returns whether a name can be stated: 1 to 255 bytes without control characters.
    pub fn is_name(name: &str) -> bool {
        is_name(name)
    }
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// A time as it is signed and shown.
pub(super) fn text(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
