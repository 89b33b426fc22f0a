//! The 3x rule: a volume must be at least three times the compressed size of the images, because it contains
//! them decompressed.

use serde::{Deserialize, Serialize};

use super::size::ByteSize;

/// The action if the volume is smaller than the rule requires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Sizing {
    /// Fail the build before any layer is fetched.
    #[default]
    Enforce,
    /// Continue the build with a warning; the size limit of the volume still applies.
    Warn,
}

/// The minimum ratio of the volume's size to the compressed size of the images.
pub const FACTOR: u64 = 3;

/// The outcome of the 3x rule for one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Total compressed size of all distinct layers, bytes.
    pub images_bytes: u64,
    /// Minimum size of the volume by the rule, [`FACTOR`] times `images_bytes`, in bytes.
    pub need: ByteSize,
    /// Requested size of the volume, bytes.
    pub have: ByteSize,
}

impl Admission {
    /// Applies the rule to the compressed sizes of distinct blobs, in bytes.
    pub fn new(distinct_blob_sizes: impl IntoIterator<Item = u64>, have: ByteSize) -> Self {
        let images_bytes = distinct_blob_sizes.into_iter().fold(0u64, u64::saturating_add);
        Admission { images_bytes, need: ByteSize(images_bytes.saturating_mul(FACTOR)), have }
    }

    /// Returns the size of a volume for which no size was given: what the rule requires, rounded up to MiB.
    /// Tiny images need more, because the file system and the index files also take space.
    pub fn automatic_size(&self) -> ByteSize {
        const MIN: u64 = 16 << 20;
        ByteSize(self.need.0.checked_next_multiple_of(1 << 20).unwrap_or(u64::MAX).max(MIN))
    }

    /// Reports whether the volume is large enough by the rule.
    pub fn fits(&self) -> bool {
        self.have >= self.need
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_the_size_is_enough() {
        assert!(Admission::new([10, 20], ByteSize(90)).fits());
        assert!(!Admission::new([10, 20], ByteSize(89)).fits());
        let automatic = |size| Admission::new([size], ByteSize(0)).automatic_size();
        assert_eq!(automatic((20 << 20) + 1), ByteSize(61 << 20));
        assert_eq!((automatic(1), automatic(u64::MAX)), (ByteSize(16 << 20), ByteSize(u64::MAX)));
        assert!(!Admission::new([u64::MAX, 1], ByteSize(u64::MAX - 1)).fits());
    }
}
