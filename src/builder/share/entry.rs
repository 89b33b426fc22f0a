//! What the file of a layer says. Pure; who wrote it is not trusted, so that a lie costs a read at most.

use std::fmt;

use serde::{Deserialize, Serialize};

use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::seal::Compression;

/// Bytes of every file. Always all of them are written, at once, so that a killed writer leaves the old or the new.
pub(super) const SIZE: usize = 1000;

/// Version of the format.
const VERSION: u32 = 1;

/// Name of a directory in `volumes/`: up to 128 of A-Z a-z 0-9 `.` `_` `-`, not beginning with a point.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The name.
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
                "the name of a shared volume has 1 to 128 of A-Z a-z 0-9 . _ - and does not begin with a point",
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

/// Where a layer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// Extracted, waiting for its parents.
    Ready {
        /// The volume that it will be on.
        volume: VolumeName,
    },
    /// Committed.
    At(At),
}

/// A committed layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::builder) struct At {
    /// The volume.
    pub(in crate::builder) volume: VolumeName,
    /// Its chain ID there.
    pub(in crate::builder) chain_id: ChainId,
    /// The blob that it came from.
    pub(in crate::builder) blob: Digest,
    /// How that was compressed.
    pub(in crate::builder) compression: Compression,
    /// Size of the tar, bytes.
    pub(in crate::builder) size: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    v: u32,
    layer: Entry,
}

impl Entry {
    /// The volume that is named.
    pub(super) fn volume(&self) -> &VolumeName {
        match self {
            Entry::Ready { volume } | Entry::At(At { volume, .. }) => volume,
        }
    }

    /// The content of a file: nothing where it says nothing that can be understood.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(bytes).ok()?;
        (file.v == VERSION).then_some(file.layer)
    }

    /// The content of the file, always [`SIZE`] bytes.
    pub(super) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(&File { v: VERSION, layer: self.clone() })?;
        bytes.resize(SIZE - 1, b' ');
        bytes.push(b'\n');
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> Entry {
        let diff_id = Digest::sha256(b"x");
        Entry::At(At {
            volume: name.to_owned().try_into().unwrap(),
            chain_id: ChainId::base(&diff_id).child(&diff_id),
            blob: diff_id,
            compression: Compression::Gzip,
            size: u64::MAX,
        })
    }

    #[test]
    fn the_longest_entry_fits_and_comes_back() {
        let name = "n".repeat(128);
        for entry in [entry(&name), Entry::Ready { volume: name.clone().try_into().unwrap() }] {
            let bytes = entry.encode().unwrap();
            assert_eq!(bytes.len(), SIZE);
            assert!(serde_json::to_vec(&entry).unwrap().len() < SIZE - 100, "never cut");
            assert_eq!(Entry::parse(&bytes), Some(entry));
        }
    }

    #[test]
    fn what_is_not_understood_says_nothing() {
        let good = String::from_utf8(entry("v").encode().unwrap()).unwrap();
        assert!(Entry::parse(good.as_bytes()).is_some());
        for bad in [
            String::new(),
            "\0".repeat(SIZE),
            good.replace("\"v\":1", "\"v\":2"),
            good.replace("\"volume\":\"v\"", "\"volume\":\"../v\""),
            good.replace("\"volume\":\"v\"", "\"volume\":\".\""),
            good.replace("\"size\"", "\"more\":1,\"size\""),
            good.replace("sha256:", "sha256:../"),
            good[..good.find('}').unwrap()].to_owned(),
        ] {
            assert_eq!(Entry::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn names_are_single_and_plain() {
        for bad in ["", ".", "..", ".x", "a/b", "a b", "é", "a\n", &"x".repeat(129)] {
            assert!(VolumeName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        assert!(VolumeName::try_from("0b6f.2".to_owned()).is_ok());
    }
}
