//! The signed statement about a volume: the name of its cache and its sequence number among volumes of that
//! name.

use chrono::{DateTime, SecondsFormat, Timelike as _, Utc};

use crate::key::Claims;

/// The signed statement about one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Name of the cache, if it has one.
    pub name: Option<String>,
    /// Time of signing, in whole seconds.
    pub created: DateTime<Utc>,
    /// Sequence number of the volume among those of that name.
    pub sequence: u64,
}

impl Statement {
    /// Creates the statement for a volume that is signed now. A name that is not valid by
    /// [`Claims::is_name`] is omitted.
    pub(super) fn now(claims: Claims) -> Self {
        let now = Utc::now();
        let created = now.with_nanosecond(0).unwrap_or(now);
        let sequence =
            claims.sequence.unwrap_or_else(|| u64::try_from(created.timestamp()).unwrap_or_default());
        Statement { name: claims.name.filter(|name| Claims::is_name(name)), created, sequence }
    }

    /// Parses the fields of a file; `None` if one of them is not in canonical form.
    pub(super) fn parse(name: Option<&str>, created: &str, sequence: u64) -> Option<Self> {
        let time = DateTime::parse_from_rfc3339(created).ok()?.to_utc();
        let is_sound = text(&time) == created && name.is_none_or(Claims::is_name);
        is_sound.then(|| Statement { name: name.map(str::to_owned), created: time, sequence })
    }

    pub(super) fn created_text(&self) -> String {
        text(&self.created)
    }

    /// Returns the lines that are signed.
    pub(super) fn lines(&self) -> String {
        let name = self.name.as_deref().unwrap_or_default();
        format!("name {name}\ncreated {}\nsequence {}\n", self.created_text(), self.sequence)
    }
}

/// Formats a time as it is signed and printed.
pub(super) fn text(time: &DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}
