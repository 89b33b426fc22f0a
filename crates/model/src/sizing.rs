//! The 3x rule: a volume must be at least three times the size of the images, because it holds them decompressed.

use serde::{Deserialize, Serialize};

use super::size::ByteSize;

/// What happens when the volume is smaller than the rule asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Sizing {
    /// The build is refused before a layer byte moves.
    #[default]
    Enforce,
    /// The build goes on with a warning; the cap still holds.
    Warn,
}

/// How many times the compressed size of the images a volume must hold.
pub const FACTOR: u64 = 3;

/// The outcome of the rule for one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Sum of the compressed sizes of all distinct layers, bytes.
    pub images_bytes: u64,
    /// What the rule asks: [`FACTOR`] times that, bytes.
    pub need: ByteSize,
    /// The size asked for, bytes.
    pub have: ByteSize,
}

impl Admission {
    /// Applies the rule to the compressed sizes of distinct blobs.
    pub fn new(distinct_blob_sizes: impl IntoIterator<Item = u64>, have: ByteSize) -> Self {
        let images_bytes = distinct_blob_sizes.into_iter().fold(0u64, u64::saturating_add);
        Admission { images_bytes, need: ByteSize(images_bytes.saturating_mul(FACTOR)), have }
    }

    /// Whether the volume is large enough by the rule.
    pub fn fits(&self) -> bool {
        self.have >= self.need
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_edge() {
        assert!(Admission::new([10, 20], ByteSize(90)).fits());
        assert!(!Admission::new([10, 20], ByteSize(89)).fits());
        assert!(!Admission::new([u64::MAX, 1], ByteSize(u64::MAX - 1)).fits());
    }
}
