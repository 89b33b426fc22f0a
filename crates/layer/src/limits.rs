//! What a layer may ask of us. Each limit guards memory or time; disk is guarded by the cap of the volume.

/// Limits on one layer. [`Default`] gives values far above any honest image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Members of the tar, extended headers not counted. Default 10,000,000.
    pub max_entries: u64,
    /// Sum of the logical sizes of all files, holes included, bytes. Default 1 TiB.
    pub max_logical_bytes: u64,
    /// Body of one extended header (PAX `x` and `g`, GNU `L` and `K`), bytes. Default 1 MiB, as Go's archive/tar.
    pub max_pax_bytes: u64,
    /// Path or link target, bytes. Default 64 KiB; PATH_MAX and NAME_MAX are the sink's business.
    pub max_path: usize,
    /// Regions in the map of one sparse file. Default 262,144, which is 4 MiB of memory.
    pub max_sparse_regions: usize,
    /// How far a blob may inflate.
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

/// The bound on how far a blob may inflate. gzip cannot pass 1032:1, zstd has no bound of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// Output up to this many bytes is never judged. Default 256 MiB.
    pub floor: u64,
    /// Output bytes for each byte of the blob. Default 2000.
    pub max: u64,
}

impl Default for Ratio {
    fn default() -> Self {
        Ratio { floor: 256 << 20, max: 2000 }
    }
}

impl Ratio {
    /// Whether `output` bytes out of `input` bytes of a blob are more than an honest blob gives.
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
