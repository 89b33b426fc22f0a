//! Parses versions of containerd.

use std::fmt;
use std::str::FromStr;

use larder_model::class::Class;

/// The version of containerd, as far as the configuration depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The major version: 1 or 2.
    pub major: u32,
    /// The minor version number.
    pub minor: u32,
}

/// The text contains no version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a version of containerd, such as 1.6.20 or v2.1.3")]
pub struct UnknownVersion(String);

impl UnknownVersion {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        Class::Invalid
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    /// Parses the answer of the version service (`1.6.20~ds1`, `v2.1.3`), or the output of `containerd
    /// --version`.
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
