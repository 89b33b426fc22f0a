//! Limits on what one layer can consume. Each limit protects memory or time; the cap of the volume protects
//! the disk.

/// Maximum length of a name in Linux (`NAME_MAX`), bytes.
pub const NAME_MAX: usize = 255;

/// Maximum number of path components: the most that PATH_MAX allows. Costs grow with its square.
pub const MAX_DEPTH: usize = 2048;

/// Limits on one layer. The values of [`Default`] are far above any honest image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of tar members, not counting extended headers. Default 10,000,000.
    pub max_entries: u64,
    /// Maximum sum of the logical sizes of all files, including holes, bytes. Default 1 TiB.
    pub max_logical_bytes: u64,
    /// Maximum body of one extended header (PAX `x` and `g`, GNU `L` and `K`), bytes. Default 1 MiB, as in
    /// Go's archive/tar.
    pub max_pax_bytes: u64,
    /// Maximum length of a path or link target, bytes. Default 64 KiB. The sink enforces PATH_MAX and
    /// NAME_MAX.
    pub max_path: usize,
    /// Maximum number of regions in the map of one sparse file. Default 262,144, which is 4 MiB of memory.
    pub max_sparse_regions: usize,
    /// Maximum expansion of a blob by decompression.
    pub ratio: Ratio,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_entries: 10_000_000,
            max_logical_bytes: 1 << 40,
            max_pax_bytes: 1 << 20,
            max_path: 64 << 10,
            max_sparse_regions: 1 << 18,
            ratio: Ratio::default(),
        }
    }
}

/// The limit on the compression ratio of a blob. gzip cannot exceed 1032:1; zstd has no inherent limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// Decompressed size up to which the ratio is not checked, bytes. Default 256 MiB.
    pub floor: u64,
    /// Maximum number of output bytes per byte of the blob. Default 2000.
    pub max: u64,
}

impl Default for Ratio {
    fn default() -> Self {
        Ratio { floor: 256 << 20, max: 2000 }
    }
}

impl Ratio {
    /// Reports whether `output` bytes from `input` bytes of a blob exceed the limit.
    pub fn is_exceeded(&self, input: u64, output: u64) -> bool {
        output > self.floor && output / self.max > input
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_judged_above_the_floor_only() {
        let ratio = Ratio { floor: 1000, max: 10 };
        assert!(!ratio.is_exceeded(1, 1000));
        assert!(ratio.is_exceeded(1, 1001));
        assert!(!ratio.is_exceeded(200, 2000));
        assert!(ratio.is_exceeded(200, 2010));
    }
}
