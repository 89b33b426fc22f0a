//! Selects the best cache for a workload on this node. The candidates are attached volumes, volumes of the
//! local daemon, and given volumes, ranked by [`model::matching`](larder_model::matching).
//!
//! Exactly one cache is selected, because one is attached at a time. The images that it lacks are listed,
//! even if another cache has them. Images for other platforms do not count.

mod volumes;

use std::collections::HashMap;
use std::path::PathBuf;

use chrono::{DateTime, Utc};

pub use volumes::{Error, Sources, Volume, Volumes, collect};

use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::matching::{self, Item, Score};
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_model::seal::Content;

/// The location of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// The cache is attached to this node.
    Attached {
        /// The mount point of the volume.
        at: PathBuf,
    },
    /// The user specified the volume.
    Named,
    /// The cache is in the state directory of the local daemon.
    State {
        /// The owner of the cache.
        tenant: TenantName,
        /// The ID of the cache in the daemon.
        id: CacheId,
    },
    /// A daemon has the cache, and no volume that this process can read is the same.
    Daemon {
        /// The address of the daemon, as given.
        host: String,
        /// The ID of the cache in the daemon.
        id: CacheId,
        /// The name of the cache in the daemon.
        name: String,
    },
}

/// The best cache for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BestCache {
    /// The location of the cache.
    pub place: Location,
    /// The volume: a directory, an image file or a block device. `None` if only a daemon has it.
    pub volume: Option<PathBuf>,
    /// The digest in its `cache.json`.
    pub digest: Digest,
    /// Time of the seal. On this node, this is the modification time of `cache.json`, which a copy might not
    /// preserve.
    pub sealed_at: DateTime<Utc>,
    /// The score, with the missing images.
    pub score: Score,
}

/// The best cache does not contain all requested images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not cached: {}; the best cache contains {held} of {of} images: create a cache with all of them, or pull the missing ones",
    missing.join(", ")
)]
pub struct Incomplete {
    /// The missing images, as given.
    pub missing: Vec<String>,
    /// Number of images in the cache.
    pub held: usize,
    /// Number of distinct images requested.
    pub of: usize,
}

impl Incomplete {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        Class::NotFound
    }
}

impl BestCache {
    /// Returns the number of distinct images of the workload.
    pub fn of(&self) -> usize {
        self.score.images.saturating_add(self.score.missing.len())
    }

    /// Fails if images are missing, for callers that must not pull.
    ///
    /// # Errors
    ///
    /// [`Incomplete`] with the missing images.
    pub fn require_all(&self) -> Result<(), Incomplete> {
        if self.score.missing.is_empty() {
            return Ok(());
        }
        let missing = self.score.missing.iter().map(|image| image.given().to_owned()).collect();
        Err(Incomplete { missing, held: self.score.images, of: self.of() })
    }
}

/// Selects the best of `volumes` for images of `platform`; the first of several equal ones. `None` if no
/// volume has any of the images.
pub fn best(volumes: &[Volume], images: &[ImageReference], platform: &Platform) -> Option<BestCache> {
    volumes.iter().fold(None, |best, volume| {
        let Some(score) = matching::score(&items(&volume.sealed.content, platform), images) else {
            return best;
        };
        let found = BestCache {
            place: volume.place.clone(),
            volume: Some(volume.path.clone()),
            digest: volume.sealed.digest.clone(),
            sealed_at: volume.sealed_at,
            score,
        };
        better(best, Some(found))
    })
}

/// Selects the best of `volumes` and the cache that a daemon found. If a volume has the same cache, it is
/// preferred.
pub fn best_with(
    volumes: &[Volume],
    images: &[ImageReference],
    platform: &Platform,
    daemon: Option<BestCache>,
) -> Option<BestCache> {
    let elsewhere = daemon.filter(|found| volumes.iter().all(|volume| volume.sealed.digest != found.digest));
    better(best(volumes, images, platform), elsewhere)
}

fn better(one: Option<BestCache>, other: Option<BestCache>) -> Option<BestCache> {
    let rank = |found: &Option<BestCache>| found.as_ref().map(|found| found.score.rank(found.sealed_at));
    if rank(&other) > rank(&one) { other } else { one }
}

fn items<'a>(content: &'a Content, platform: &Platform) -> Vec<Item<'a>> {
    let runs = |offered: &Platform| {
        let same = (&offered.os, &offered.architecture) == (&platform.os, &platform.architecture);
        // The variants that this machine supports are not known here, and the creator of the cache has
        // selected them.
        same || platform.preference(offered).is_some()
    };
    let layers: HashMap<_, _> =
        content.layers.iter().map(|layer| (&layer.chain_id, (&layer.blob, layer.compressed_size))).collect();
    let images = content.images.iter().filter(|image| runs(&image.platform));
    let items = images.map(|image| Item {
        reference: &image.reference,
        index: image.index.as_ref(),
        manifest: &image.manifest,
        layers: image.chain.iter().filter_map(|chain| layers.get(chain).copied()).collect(),
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use larder_model::chain::ChainId;
    use larder_model::job::LayerFormat;
    use larder_model::seal::{self, CacheManifest, Compression, Totals};
    use larder_model::size::ByteSize;

    fn volume(path: &str, images: &[(&str, &str, u64)], seconds: i64) -> Volume {
        let digest = |text: String| Digest::sha256(text.as_bytes());
        let chain = |size: &u64| ChainId::base(&digest(format!("layer {size}")));
        let image = |(image, platform, size): &(&str, &str, u64)| seal::Image {
            reference: (*image).to_owned(),
            name: image.parse::<ImageReference>().unwrap().to_string(),
            index: None,
            manifest: digest(format!("manifest of {image}")),
            config: digest(format!("config of {image}")),
            platform: platform.parse().unwrap(),
            chain: vec![chain(size)],
        };
        let layer = |(_, _, size): &(&str, &str, u64)| seal::Layer {
            chain_id: chain(size),
            parent: None,
            diff_id: digest(format!("layer {size}")),
            blob: digest(format!("blob {size}")),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            compression: Compression::Gzip,
            compressed_size: *size,
            size: *size,
            entries: 1,
            tar_split_size: None,
            image: None,
            settled: seal::Settled::default(),
            lost: Vec::new(),
        };
        let content = Content {
            version: seal::VERSION,
            larder: path.to_owned(),
            job: digest(path.to_owned()),
            layer_format: LayerFormat::default(),
            tar_split: false,
            size: ByteSize(1),
            images: images.iter().map(image).collect(),
            layers: images.iter().map(layer).collect(),
            totals: Totals::default(),
        };
        Volume {
            place: Location::Named,
            path: path.into(),
            sealed: CacheManifest::new(content).unwrap(),
            sealed_at: DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds),
        }
    }

    fn chosen(volumes: &[Volume], images: &[&str]) -> Option<PathBuf> {
        let images: Vec<ImageReference> = images.iter().map(|image| image.parse().unwrap()).collect();
        best(volumes, &images, &"linux/amd64".parse().unwrap())?.volume
    }

    #[test]
    fn ties_go_to_the_newest_and_then_to_the_first() {
        let here = "linux/amd64";
        let old = volume("/old", &[("a:1", here, 7), ("b:1", here, 90)], 1);
        let new = volume("/new", &[("a:1", here, 7)], 2);
        let same = volume("/same", &[("a:1", here, 7)], 2);
        let large = volume("/large", &[("a:1", here, 8)], 0);
        let all = [old.clone(), new.clone(), same.clone()];
        assert_eq!(chosen(&all, &["a:1"]).unwrap().to_str(), Some("/new"));
        assert_eq!(chosen(&[same, new, old.clone()], &["a:1"]).unwrap().to_str(), Some("/same"));
        assert_eq!(chosen(&[old.clone(), large.clone()], &["a:1"]).unwrap().to_str(), Some("/large"));
        assert_eq!(chosen(&[large, old], &["a:1", "b:1"]).unwrap().to_str(), Some("/old"));
        assert_eq!(chosen(&all, &["c:1"]), None);
        assert_eq!(chosen(&[], &["a:1"]), None);
    }

    #[test]
    fn images_for_other_platforms_do_not_count() {
        let held = [
            volume("/arm", &[("a:1", "linux/arm64", 900)], 0),
            volume("/newer-cpu", &[("a:1", "linux/amd64/v3", 5)], 0),
            volume("/windows", &[("a:1", "windows/amd64", 900)], 0),
        ];
        assert_eq!(chosen(&held, &["a:1"]).unwrap().to_str(), Some("/newer-cpu"));
        assert_eq!(chosen(&held[..1], &["a:1"]), None);
        let arm = best(&held, &["a:1".parse().unwrap()], &"linux/arm64".parse().unwrap()).unwrap();
        assert_eq!(arm.volume.unwrap().to_str(), Some("/arm"));
    }

    #[test]
    fn a_daemon_wins_only_with_a_cache_that_is_not_local() {
        let volumes = [volume("/here", &[("a:1", "linux/amd64", 7)], 5)];
        let (images, platform) =
            (["a:1".parse().unwrap(), "b:1".parse().unwrap()], "linux/amd64".parse().unwrap());
        let of_daemon = |digest: &Digest, images, seconds| BestCache {
            place: Location::Daemon { host: "d".into(), id: CacheId::random(), name: "web".into() },
            volume: None,
            digest: digest.clone(),
            sealed_at: DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds),
            score: Score { images, bytes: 7, missing: Vec::new() },
        };
        let asked = |found| best_with(&volumes, &images, &platform, found).unwrap();
        let (same, other) = (&volumes[0].sealed.digest, &Digest::sha256(b"other"));
        assert!(asked(None).volume.is_some());
        assert!(asked(Some(of_daemon(same, 1, 9))).volume.is_some(), "the same volume");
        assert!(asked(Some(of_daemon(other, 1, 5))).volume.is_some(), "equal");
        assert!(asked(Some(of_daemon(other, 1, 6))).volume.is_none(), "newer");
        assert!(asked(Some(of_daemon(other, 2, 1))).volume.is_none(), "more images");
    }
}
