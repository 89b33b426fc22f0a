//! The specification of an image cache, as a tenant requests it.

use serde::{Deserialize, Serialize};

use super::name::CacheName;
use crate::reference::ImageReference;
use crate::size::ByteSize;

/// Maximum number of images in one cache.
pub const MAX_IMAGES: usize = 20;
/// Minimum and default size of a volume, GiB.
pub const MIN_SIZE_GIB: u32 = 20;
/// Maximum size of a volume, GiB.
pub const MAX_SIZE_GIB: u32 = 400;
/// Maximum retention time, days.
pub const MAX_RETENTION_DAYS: u32 = 10_000;
/// Maximum number of pull secrets of one cache.
pub const MAX_PULL_SECRETS: usize = 64;
/// Maximum length of the name of a pull secret or the UID of a cluster, bytes.
pub const MAX_TEXT: usize = 512;

/// The specification of an image cache. Every field has been checked against its limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name of the cache.
    pub name: CacheName,
    /// Images, 1 to [`MAX_IMAGES`].
    pub images: Vec<ImageReference>,
    /// Size of the volume, GiB.
    pub size_gib: u32,
    /// Days until the cache expires; 0 means never.
    pub retention_days: u32,
    /// UID of the cluster that builds the cache.
    pub cluster: String,
    /// Pull secrets as they were given. They are text, because the API must not reveal whether a secret is
    /// malformed, unknown or forbidden.
    pub pull_secrets: Vec<String>,
}

/// The error for a field that is outside its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The number of images is outside 1 to [`MAX_IMAGES`].
    #[error("images: {0} given, want 1 to {MAX_IMAGES}")]
    Images(usize),
    /// The size is out of range, GiB.
    #[error("image_cache_size: {0} GiB given, want {MIN_SIZE_GIB} to {MAX_SIZE_GIB}")]
    Size(u32),
    /// The retention time is out of range, days.
    #[error("retention_days: {0} given, want 0 (forever) to {MAX_RETENTION_DAYS}")]
    Retention(u32),
    /// The cluster UID is empty or too long, bytes.
    #[error("building_config.cluster: {0} bytes given, want the UID of a cluster")]
    Cluster(usize),
    /// There are too many pull secrets, or one is too long.
    #[error(
        "building_config.image_pull_secrets: want at most {MAX_PULL_SECRETS}, each namespace:name of at most {MAX_TEXT} bytes"
    )]
    PullSecrets,
}

impl Spec {
    /// Checks the limits that the types do not enforce.
    ///
    /// # Errors
    /// Returns [`SpecError`] for the first field that is outside its limits.
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

    /// Returns the size of the volume in bytes.
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
