//! Byte counts with units.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes. The text form has a unit (`20GiB`, `1.5TB`, `4096`); the value is stored and serialized
/// as bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// The error for a string that is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: want a number and a unit, as in 20GiB, 1.5TB, 512MiB or 4096")]
pub struct ParseSizeError(String);

const UNITS: [(&str, u64); 10] = [
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
    ("", 1),
];

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    /// Parses a size. Binary units are KiB MiB GiB TiB (also Ki Mi Gi Ti as in Kubernetes, and K M G T as in
    /// dd); decimal units are kB MB GB TB. Case is ignored.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseSizeError(s.chars().take(40).collect());
        let at = s.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(s.len());
        let (number, unit) = s.split_at(at);
        let unit = unit.trim().to_ascii_lowercase();
        let unit = match unit.as_str() {
            "k" | "m" | "g" | "t" => format!("{unit}ib"),
            "ki" | "mi" | "gi" | "ti" => format!("{unit}b"),
            _ => unit,
        };
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refuse)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().map_err(|_| refuse())?;
        let mut bytes = u128::from(whole) * u128::from(*factor);
        if number.contains('.') {
            let scale = 10u128.checked_pow(u32::try_from(fraction.len()).map_err(|_| refuse())?);
            let digits: u64 = fraction.parse().map_err(|_| refuse())?;
            bytes += u128::from(digits) * u128::from(*factor) / scale.ok_or_else(refuse)?;
        }
        u64::try_from(bytes).map(ByteSize).map_err(|_| refuse())
    }
}

impl ByteSize {
    /// Returns the exact size, as it can be given on the command line: in the largest unit in which it is
    /// whole.
    pub fn exact(self) -> String {
        let units = [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let unit = units.into_iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = unit.unwrap_or(("B", 1));
        format!("{}{unit}", self.0 / factor)
    }
}

impl fmt::Display for ByteSize {
    /// Writes the size in the largest binary unit in which it is at least 1, with two decimals unless it is
    /// whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor {
                if self.0.is_multiple_of(factor) {
                    return write!(f, "{} {unit}", self.0 / factor);
                }
                let hundredths = u128::from(self.0) * 100 / u128::from(factor);
                return write!(f, "{}.{:02} {unit}", hundredths / 100, hundredths % 100);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    /// Accepts a number of bytes or a string with a unit.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Given::deserialize(deserializer)?.size().map_err(serde::de::Error::custom)
    }
}

/// A size as given: bytes, or a text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Bytes(u64),
    Text(String),
}

impl Given {
    fn size(self) -> Result<ByteSize, ParseSizeError> {
        match self {
            Given::Bytes(bytes) => Ok(ByteSize(bytes)),
            Given::Text(text) => text.parse(),
        }
    }
}

/// The size of a volume in a job or on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeSize {
    /// Larder computes the size from the images. The text form is `auto`.
    Auto,
    /// The given size.
    Given(ByteSize),
}

impl VolumeSize {
    /// Returns the given size; `None` if it is computed.
    pub fn given(self) -> Option<ByteSize> {
        match self {
            VolumeSize::Auto => None,
            VolumeSize::Given(size) => Some(size),
        }
    }
}

const AUTO: &str = "auto";

impl Serialize for VolumeSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            VolumeSize::Auto => serializer.serialize_str(AUTO),
            VolumeSize::Given(size) => size.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for VolumeSize {
    /// Accepts `auto`, a number of bytes, or a string with a unit.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Given::deserialize(deserializer)? {
            Given::Text(text) if text == AUTO => Ok(VolumeSize::Auto),
            given => given.size().map(VolumeSize::Given).map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_volumes() {
        let read = |json: &str| serde_json::from_str::<VolumeSize>(json);
        for (json, size) in [
            (r#""auto""#, VolumeSize::Auto),
            (r#""1MiB""#, VolumeSize::Given(ByteSize(1 << 20))),
            ("7", VolumeSize::Given(ByteSize(7))),
        ] {
            let found = read(json).unwrap();
            assert_eq!(found, size);
            assert_eq!(read(&serde_json::to_string(&found).unwrap()).unwrap(), size);
        }
        assert_eq!((VolumeSize::Auto.given(), read("7").unwrap().given()), (None, Some(ByteSize(7))));
        for bad in [r#""automatic""#, r#""Auto""#, "-1", "[]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("20GiB", 20 << 30),
            ("20 GiB", 20 << 30),
            ("20G", 20 << 30),
            ("20Gi", 20 << 30),
            ("1.5TB", 1_500_000_000_000),
            ("0.5KiB", 512),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<ByteSize>(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.", "1..2G", "1XB", "99999999999999TiB", "1e9"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn exact_sizes_can_be_read_again() {
        for size in ["20GiB", "1537B", "0B", "3MiB"] {
            assert_eq!(size.parse::<ByteSize>().unwrap().exact(), size);
        }
        assert_eq!(ByteSize(1024 << 30).exact(), "1TiB");
    }

    #[test]
    fn display_uses_binary_units() {
        assert_eq!(ByteSize(20 << 30).to_string(), "20 GiB");
        assert_eq!(ByteSize(1536).to_string(), "1.50 KiB");
        assert_eq!(ByteSize(17).to_string(), "17 B");
    }
}
