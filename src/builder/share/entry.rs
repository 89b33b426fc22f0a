//! The content of a layer's file. Pure. The writer is not trusted: a false entry costs at most a read.

use serde::{Deserialize, Serialize};

use crate::builder::volume_name::VolumeName;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::seal::Compression;

/// Size of every file, bytes. It is always written completely and at once, so that a killed writer leaves
/// either the old or the new content.
pub(super) const SIZE: usize = 1000;

/// Version of the format.
const VERSION: u32 = 1;

/// State and volume of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// Extracted, but not committed.
    Ready {
        /// The volume that it will be on.
        volume: VolumeName,
    },
    /// Committed to a volume.
    At(LayerLocation),
}

/// Location of a committed layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::builder) struct LayerLocation {
    /// Name of the volume.
    pub(in crate::builder) volume: VolumeName,
    /// Chain ID on that volume.
    pub(in crate::builder) chain_id: ChainId,
    /// The blob that it came from.
    pub(in crate::builder) blob: Digest,
    /// Compression of the blob.
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
    /// Returns the volume in the entry.
    pub(super) fn volume(&self) -> &VolumeName {
        match self {
            Entry::Ready { volume } | Entry::At(LayerLocation { volume, .. }) => volume,
        }
    }

    /// Parses the content of a file; `None` if it is malformed.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(bytes).ok()?;
        (file.v == VERSION).then_some(file.layer)
    }

    /// Returns the content of the file, always [`SIZE`] bytes.
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
        Entry::At(LayerLocation {
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
    fn malformed_entries_are_ignored() {
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
