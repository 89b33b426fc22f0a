//! Chain IDs: the identity of a layer on top of its parents (OCI image spec, config.md, "Layer ChainID").

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::digest::Digest;

/// The identity of a stack of layers, base first. It is also the name of the layer's directory on the volume.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// Returns the chain ID of a base layer, which equals its diff ID.
    pub fn base(diff_id: &Digest) -> Self {
        ChainId(diff_id.clone())
    }

    /// Returns the chain ID of the layer `diff_id` on top of `self`.
    pub fn child(&self, diff_id: &Digest) -> Self {
        ChainId(Digest::sha256(format!("{} {}", self.0, diff_id).as_bytes()))
    }

    /// Returns the chain IDs of all layers of an image, base first.
    pub fn chain(diff_ids: &[Digest]) -> Vec<Self> {
        let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let next = chain.last().map_or_else(|| ChainId::base(diff_id), |parent| parent.child(diff_id));
            chain.push(next);
        }
        chain
    }

    /// Returns the chain ID as a digest.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// Returns the hexadecimal digits, which are the name of the layer's directory.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }

    /// Returns the short name under `overlay/l/`, derived from the hexadecimal chain ID.
    pub fn link(&self) -> String {
        short_name(self.hex())
    }
}

/// Returns a short name under `overlay/l/`: ten base32 characters of the sha256 of `text`, which must
/// identify one tree.
///
/// The name is short because overlayfs takes its lower directories in one page of mount options. It is
/// derived from the content because podman looks up short names in every store of the machine: two volumes
/// must never use one name for different trees.
pub fn short_name(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = sha2::Sha256::digest(text.as_bytes());
    let mut bits = 0u64;
    for byte in &hash[..7] {
        bits = bits << 8 | u64::from(*byte);
    }
    (0..SHORT_NAME).map(|i| char::from(ALPHABET[(bits >> (51 - 5 * i) & 31) as usize])).collect()
}

/// Number of characters of a [`short_name`].
pub const SHORT_NAME: usize = 10;

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_of_two() {
        let a = Digest::sha256(b"a");
        let b = Digest::sha256(b"b");
        let chain = ChainId::chain(&[a.clone(), b.clone()]);
        assert_eq!(chain[0].digest(), &a);
        assert_eq!(chain[1].digest(), &Digest::sha256(format!("{a} {b}").as_bytes()));
    }

    #[test]
    fn links_are_ten_plain_characters() {
        let link = ChainId::base(&Digest::sha256(b"a")).link();
        assert_eq!(link.len(), 10);
        assert!(link.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
        assert_ne!(link, ChainId::base(&Digest::sha256(b"b")).link());
    }
}
