//! Chain IDs: the identity of a layer on top of its parents (OCI image spec, config.md, "Layer ChainID").

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::digest::Digest;

/// The identity of a stack of layers, base first. Names the layer's directory on the volume.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChainId(Digest);

impl ChainId {
    /// The chain ID of a base layer, which is its diff ID.
    pub fn base(diff_id: &Digest) -> Self {
        ChainId(diff_id.clone())
    }

    /// The chain ID of the layer `diff_id` on top of `self`.
    pub fn child(&self, diff_id: &Digest) -> Self {
        ChainId(Digest::sha256(format!("{} {}", self.0, diff_id).as_bytes()))
    }

    /// The chain IDs of a whole image, base first.
    pub fn chain(diff_ids: &[Digest]) -> Vec<Self> {
        let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
        for diff_id in diff_ids {
            let next = chain.last().map_or_else(|| ChainId::base(diff_id), |parent| parent.child(diff_id));
            chain.push(next);
        }
        chain
    }

    /// The digest behind it.
    pub fn digest(&self) -> &Digest {
        &self.0
    }

    /// The hexadecimal digits: the name of the layer's directory.
    pub fn hex(&self) -> &str {
        self.0.hex()
    }

    /// The short name under `overlay/l/`, by the hexadecimal chain ID.
    pub fn link(&self) -> String {
        short_name(self.hex())
    }
}

/// Ten base32 characters of sha256 over `text`: a short name under `overlay/l/` for the tree that `text` tells from all others.
///
/// It is short because overlayfs takes its lower directories in one page of mount options, and derived because podman looks
/// short names up in every store of the machine, so two volumes must never give one name to different trees.
pub fn short_name(text: &str) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = sha2::Sha256::digest(text.as_bytes());
    let mut bits = 0u64;
    for byte in &hash[..7] {
        bits = bits << 8 | u64::from(*byte);
    }
    (0..SHORT_NAME).map(|i| char::from(ALPHABET[(bits >> (51 - 5 * i) & 31) as usize])).collect()
}

/// Characters of a [`short_name`].
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
