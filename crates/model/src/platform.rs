//! Platforms (OCI image spec, image-index.md, "platform") and their compatibility with a host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A platform in Go's terms, `os/architecture[/variant]`: `linux/amd64`, `linux/arm64/v8`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    /// Operating system, as in `GOOS`.
    pub os: String,
    /// CPU architecture, as in `GOARCH`.
    pub architecture: String,
    /// CPU variant; empty if none is given.
    pub variant: String,
}

/// The error for a string that is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: want os/architecture or os/architecture/variant, as in linux/amd64")]
pub struct ParsePlatformError(String);

impl Platform {
    /// Creates a platform in normal form: `arm64/v8` becomes `arm64`, `arm` becomes `arm/v7`, `amd64/v1`
    /// becomes `amd64`, and the names that `uname -m` prints become Go's names (as in containerd's
    /// `platforms.Normalize`).
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = os.to_ascii_lowercase();
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", v) => ("amd64", v),
            ("i386" | "x86" | "386", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
            ("aarch64", v) => ("arm64", v),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (a, v) => (a, v),
        };
        Platform { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// Returns the platform for which this program was compiled.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform::new(std::env::consts::OS, architecture, "")
    }

    /// Returns how well an image for `offered` runs on `self`: lower is better, and `None` means that it
    /// cannot run.
    ///
    /// The order is containerd's (`platforms.Only`): the same variant first, then older variants of the same
    /// architecture, newest first. On arm64, 32-bit arm follows, newest first.
    pub fn preference(&self, offered: &Platform) -> Option<u32> {
        if self.os != offered.os {
            return None;
        }
        if self.architecture == offered.architecture {
            if self.variant == offered.variant {
                return Some(0);
            }
            let own = variant_level(&self.architecture, &self.variant)?;
            let other = variant_level(&offered.architecture, &offered.variant)?;
            return (other < own).then(|| own - other);
        }
        let arm_on_arm64 = self.architecture == "arm64" && offered.architecture == "arm";
        let level = arm_on_arm64.then(|| variant_level("arm", &offered.variant)).flatten()?;
        (level <= 80).then(|| 1000 + 80 - level)
    }
}

/// Converts a variant to a number, ten per major version: v7 is 70, v8.2 is 82. An empty variant is the
/// architecture's default.
fn variant_level(architecture: &str, variant: &str) -> Option<u32> {
    let variant = match (architecture, variant) {
        ("amd64", "") => "v1",
        ("arm64", "") => "v8",
        ("arm", "") => "v7",
        (_, v) => v,
    };
    let mut parts = variant.strip_prefix('v')?.splitn(2, '.');
    let major: u32 = parts.next()?.parse().ok()?;
    let minor: u32 = parts.next().unwrap_or("0").parse().ok()?;
    (major < 100 && minor < 10).then_some(major * 10 + minor)
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = || ParsePlatformError(s.chars().take(80).collect());
        let plain = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let parts: Vec<&str> = s.split('/').collect();
        if !parts.iter().all(plain) {
            return Err(refuse());
        }
        match parts[..] {
            [os, architecture] => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, variant)),
            _ => Err(refuse()),
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = ParsePlatformError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> String {
        platform.to_string()
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(s: &str) -> Platform {
        s.parse().unwrap()
    }

    #[test]
    fn normal_forms() {
        for (given, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            assert_eq!(platform(given).to_string(), normal);
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/amd64/../x", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nearest_older_variant_wins() {
        let host = platform("linux/arm/v7");
        assert_eq!(host.preference(&platform("linux/arm/v7")), Some(0));
        assert!(host.preference(&platform("linux/arm/v6")) < host.preference(&platform("linux/arm/v5")));
        assert_eq!(host.preference(&platform("linux/arm/v8")), None);
        assert_eq!(platform("linux/amd64").preference(&platform("linux/amd64/v3")), None);
        assert!(platform("linux/amd64/v3").preference(&platform("linux/amd64")).is_some());
        assert!(platform("linux/arm64").preference(&platform("linux/arm/v7")).is_some());
        assert_eq!(platform("linux/amd64").preference(&platform("windows/amd64")), None);
    }
}
