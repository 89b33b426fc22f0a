//! Names of volumes in a directory that builders share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Name of a directory in `volumes/`: up to 128 of A-Z a-z 0-9 `.` `_` `-`, not starting with a dot.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for VolumeName {
    type Error = &'static str;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if (1..=128).contains(&name.len()) && name.bytes().all(known) && !name.starts_with('.') {
            Ok(VolumeName(name))
        } else {
            Err(
                "the name of a shared volume must have 1 to 128 of A-Z a-z 0-9 . _ - and must not start with a dot",
            )
        }
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
