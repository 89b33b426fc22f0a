//! Ranking of image caches for a workload: most of its images, then most bytes, then the newest.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::digest::Digest;
use super::reference::ImageReference;

/// An image that a cache contains.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// The reference as it was given when the cache was created.
    pub reference: &'a str,
    /// Digest of the index that the reference resolved to, if any.
    pub index: Option<&'a Digest>,
    /// Digest of its manifest.
    pub manifest: &'a Digest,
    /// Digests and compressed sizes, bytes, of the blobs of its layers.
    pub layers: Vec<(&'a Digest, u64)>,
}

/// The score of a cache for a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// Number of distinct images of the workload that the cache contains.
    pub images: usize,
    /// Compressed size of these images, bytes. A layer that several images share counts once.
    pub bytes: u64,
    /// The other images of the workload, in their order.
    pub missing: Vec<ImageReference>,
}

impl Score {
    /// Returns the rank, by which the best cache is the maximum. The caller decides ties.
    pub fn rank(&self, sealed_at: DateTime<Utc>) -> (usize, u64, DateTime<Utc>) {
        (self.images, self.bytes, sealed_at)
    }
}

/// Returns the score of a cache with `items` for a workload; `None` if it contains none of the images.
pub fn score(items: &[Item<'_>], workload: &[ImageReference]) -> Option<Score> {
    let mut seen = HashSet::new();
    let mut score = Score { images: 0, bytes: 0, missing: Vec::new() };
    let mut blobs = HashSet::new();
    for wanted in workload.iter().filter(|wanted| seen.insert(*wanted)) {
        let Some(held) = items.iter().find(|item| serves(item, wanted)) else {
            score.missing.push(wanted.clone());
            continue;
        };
        score.images += 1;
        for (_, size) in held.layers.iter().filter(|(blob, _)| blobs.insert(*blob)) {
            // The sizes come from the volume itself, so they can be any number.
            score.bytes = score.bytes.saturating_add(*size);
        }
    }
    (score.images > 0).then_some(score)
}

/// Reports whether an image satisfies a reference. With a digest, the repository must be the same, and the
/// digest must be that of the image or its index. (Workloads are usually pinned to the index.) Without a
/// digest, the name and the tag must be the same.
fn serves(item: &Item<'_>, wanted: &ImageReference) -> bool {
    let Ok(held) = item.reference.parse::<ImageReference>() else { return false };
    match wanted.digest() {
        Some(digest) => {
            let digests = [Some(item.manifest), item.index, held.digest()];
            held.name() == wanted.name() && digests.contains(&Some(digest))
        }
        None => held == *wanted,
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    struct Held {
        reference: &'static str,
        index: Digest,
        manifest: Digest,
        layers: Vec<(Digest, u64)>,
    }

    fn digest(of: &str) -> Digest {
        Digest::sha256(of.as_bytes())
    }

    /// Builds a cache of images with layers. The number of a layer is also its size.
    fn cache(images: &[(&'static str, &[u64])]) -> Vec<Held> {
        let layer = |size: &u64| (digest(&size.to_string()), *size);
        let held = |(reference, layers): &(&'static str, &[u64])| Held {
            reference,
            index: digest(&format!("index of {reference}")),
            manifest: digest(reference),
            layers: layers.iter().map(layer).collect(),
        };
        images.iter().map(held).collect()
    }

    fn of(cache: &[Held], images: &[&str]) -> Option<Score> {
        let items: Vec<Item<'_>> = cache
            .iter()
            .map(|held| Item {
                reference: held.reference,
                index: Some(&held.index),
                manifest: &held.manifest,
                layers: held.layers.iter().map(|(blob, size)| (blob, *size)).collect(),
            })
            .collect();
        score(&items, &references(images))
    }

    fn references(images: &[&str]) -> Vec<ImageReference> {
        images.iter().map(|image| image.parse().unwrap()).collect()
    }

    #[test]
    fn images_then_bytes_then_age() {
        let at = |seconds| DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let rank = |cache: &[Held], seconds| of(cache, &["a:1", "b:1"]).unwrap().rank(at(seconds));
        let two = cache(&[("a:1", &[1]), ("b:1", &[2])]);
        let large = cache(&[("a:1", &[100])]);
        assert!(rank(&two, 0) > rank(&large, 1));
        assert!(rank(&large, 0) > rank(&cache(&[("a:1", &[99])]), 1));
        assert!(rank(&large, 1) > rank(&large, 0));
        assert_eq!(rank(&large, 0), rank(&cache(&[("b:1", &[100]), ("c:1", &[7])]), 0));
    }

    #[test]
    fn shared_layers_and_repeated_images_count_once() {
        let shared = cache(&[("a:1", &[5, 5, 7]), ("b:1", &[5, 9]), ("c:1", &[100])]);
        let score = of(&shared, &["b:1", "a:1", "docker.io/library/a:1", "d:1", "d:1"]).unwrap();
        assert_eq!((score.images, score.bytes), (2, 21));
        assert_eq!(score.missing, references(&["d:1"]));
        assert_eq!(of(&shared, &["d:1"]), None);
        assert_eq!(of(&shared, &[]), None);
        let huge = cache(&[("a:1", &[u64::MAX, 2])]);
        assert_eq!(of(&huge, &["a:1"]).unwrap().bytes, u64::MAX);
    }

    #[test]
    fn a_digest_decides_over_a_tag() {
        let held = cache(&[("a:1", &[1])]);
        let by = |text: String| of(&held, &[&text]);
        assert!(by(format!("a@{}", digest("a:1"))).is_some());
        assert!(by(format!("a:2@{}", digest("a:1"))).is_some());
        assert!(by(format!("a@{}", digest("index of a:1"))).is_some());
        assert!(by(format!("b@{}", digest("a:1"))).is_none(), "another repository");
        assert!(by(format!("a:1@{}", digest("other"))).is_none());
        assert!(of(&cache(&[("not a reference", &[1])]), &["a:1"]).is_none());
    }
}
