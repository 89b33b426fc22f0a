//! What a tenant asks for.

use serde::{Deserialize, Serialize};

use super::name::CacheName;
use crate::reference::ImageReference;
use crate::size::ByteSize;

/// Most images of one cache.
pub const MAX_IMAGES: usize = 20;
/// Smallest and default size, GiB.
pub const MIN_SIZE_GIB: u32 = 20;
/// Largest size, GiB.
pub const MAX_SIZE_GIB: u32 = 400;
/// Longest retention, days.
pub const MAX_RETENTION_DAYS: u32 = 10_000;
/// Most pull secrets of one cache.
pub const MAX_PULL_SECRETS: usize = 64;
/// Longest text that is taken for the name of a pull secret or the UID of a cluster, bytes.
pub const MAX_TEXT: usize = 512;

/// The order for an image cache, every field within its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name.
    pub name: CacheName,
    /// Images, 1 to [`MAX_IMAGES`].
    pub images: Vec<ImageReference>,
    /// Size of the volume, GiB.
    pub size_gib: u32,
    /// Days until it expires; 0 is never.
    pub retention_days: u32,
    /// UID of the cluster that builds it.
    pub cluster: String,
    /// Pull secrets as they were given. Whether one is well-formed, known and allowed is not told apart, so this is text.
    pub pull_secrets: Vec<String>,
}

/// A field is out of its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Too few or too many images.
    #[error("images: {0} given, want 1 to {MAX_IMAGES}")]
    Images(usize),
    /// The size is out of range.
    #[error("image_cache_size: {0} GiB given, want {MIN_SIZE_GIB} to {MAX_SIZE_GIB}")]
    Size(u32),
    /// The retention is out of range.
    #[error("retention_days: {0} given, want 0 (for ever) to {MAX_RETENTION_DAYS}")]
    Retention(u32),
    /// The cluster is empty or far too long.
    #[error("building_config.cluster: {0} bytes given, want the UID of a cluster")]
    Cluster(usize),
    /// Too many pull secrets, or one that is far too long.
    #[error(
        "building_config.image_pull_secrets: want at most {MAX_PULL_SECRETS}, each namespace:name of at most {MAX_TEXT} bytes"
    )]
    PullSecrets,
}

impl Spec {
    /// Checks the limits that types do not hold.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.images.is_empty() || self.images.len() > MAX_IMAGES {
            return Err(SpecError::Images(self.images.len()));
        }
        if !(MIN_SIZE_GIB..=MAX_SIZE_GIB).contains(&self.size_gib) {
            return Err(SpecError::Size(self.size_gib));
        }
        if self.retention_days > MAX_RETENTION_DAYS {
            return Err(SpecError::Retention(self.retention_days));
        }
        if self.cluster.is_empty() || self.cluster.len() > MAX_TEXT {
            return Err(SpecError::Cluster(self.cluster.len()));
        }
        if self.pull_secrets.len() > MAX_PULL_SECRETS || self.pull_secrets.iter().any(|s| s.len() > MAX_TEXT)
        {
            return Err(SpecError::PullSecrets);
        }
        Ok(())
    }

    /// Size of the volume, bytes.
    pub fn size(&self) -> ByteSize {
        ByteSize(u64::from(self.size_gib) << 30)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "web".parse().unwrap(),
            images: vec!["nginx".parse().unwrap()],
            size_gib: 20,
            retention_days: 0,
            cluster: "c".into(),
            pull_secrets: vec!["anything at all".into()],
        }
    }

    #[test]
    fn limits_are_inclusive() {
        assert_eq!(spec().check(), Ok(()));
        let images = vec!["nginx".parse().unwrap(); 20];
        assert_eq!(Spec { images, size_gib: 400, retention_days: 10_000, ..spec() }.check(), Ok(()));
        assert_eq!(spec().size(), ByteSize(20 << 30));
    }

    #[test]
    fn beyond_the_limits() {
        let bad = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.check().unwrap_err()
        };
        assert_eq!(bad(|s| s.images.clear()), SpecError::Images(0));
        assert_eq!(bad(|s| s.images = vec!["nginx".parse().unwrap(); 21]), SpecError::Images(21));
        assert_eq!(bad(|s| s.size_gib = 19), SpecError::Size(19));
        assert_eq!(bad(|s| s.size_gib = 401), SpecError::Size(401));
        assert_eq!(bad(|s| s.retention_days = 10_001), SpecError::Retention(10_001));
        assert_eq!(bad(|s| s.cluster.clear()), SpecError::Cluster(0));
        assert_eq!(bad(|s| s.pull_secrets = vec!["a:b".into(); 65]), SpecError::PullSecrets);
        assert_eq!(bad(|s| s.pull_secrets = vec!["a".repeat(513)]), SpecError::PullSecrets);
    }
}
