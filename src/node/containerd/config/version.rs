//! Versions of containerd.

use std::fmt;
use std::str::FromStr;

use larder_model::class::Class;

/// Which containerd it is, as far as configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1 or 2.
    pub major: u32,
    /// What follows it.
    pub minor: u32,
}

/// A text in which there is no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of containerd, want one as in 1.6.20 or v2.1.3")]
pub struct UnknownVersion(String);

impl UnknownVersion {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    /// Reads what the version service says (`1.6.20~ds1`, `v2.1.3`), or what `containerd --version` prints.
    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let read = |word: &str| {
            let mut numbers = word.strip_prefix('v').unwrap_or(word).split('.');
            let major = numbers.next()?.parse().ok()?;
            let digits = numbers.next()?;
            let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            Some(Version { major, minor: digits[..end].parse().ok()? })
        };
        let unknown = || UnknownVersion(text.chars().take(200).collect());
        text.split_whitespace().find_map(read).ok_or_else(unknown)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}
