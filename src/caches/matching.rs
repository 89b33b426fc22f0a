//! Selects the image cache of a tenant that serves a workload best
//! ([`model::matching`](larder_model::matching)).

use std::cmp::Reverse;

use chrono::{DateTime, Utc};

use super::record::{Content, Record};
use larder_model::digest::Digest;
use larder_model::image_cache::Status;
use larder_model::matching::{self, Item, Score};
use larder_model::reference::ImageReference;

/// The best cache for a workload, with its score.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The record of the cache.
    pub record: Record,
    /// The score of the cache.
    pub score: Score,
    /// Digest of the content that `cache.json` describes.
    pub digest: Digest,
    /// Time at which the cache was sealed.
    pub sealed_at: DateTime<Utc>,
}

/// Returns the best of `records`. `None` if no available cache contains any of the images.
pub fn best<'a>(records: impl IntoIterator<Item = &'a Record>, images: &[ImageReference]) -> Option<Found> {
    let found = records.into_iter().filter_map(|record| {
        let content = record.content.as_ref().filter(|_| record.status == Status::Available)?;
        let score = matching::score(&items(content), images)?;
        Some((score, content, record))
    });
    let (score, content, record) =
        found.max_by_key(|(score, content, record)| (score.rank(content.sealed_at), Reverse(record.id)))?;
    let (digest, sealed_at) = (content.digest.clone(), content.sealed_at);
    Some(Found { record: record.clone(), score, digest, sealed_at })
}

fn items(content: &Content) -> Vec<Item<'_>> {
    let items = content.images.iter().map(|image| {
        let layers = content.layers.iter().filter(|layer| layer.images.contains(&image.reference));
        Item {
            reference: &image.reference,
            index: image.index.as_ref(),
            manifest: &image.manifest,
            layers: layers.map(|layer| (&layer.blob, layer.compressed_size)).collect(),
        }
    });
    items.collect()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::caches::record::{LayerHistory, Origin};
    use larder_model::event::SealedImage;
    use larder_model::image_cache::{CacheId, Spec};
    use larder_model::seal::Totals;

    fn record(images: &[(&str, u64)], seconds: i64) -> Record {
        let spec = Spec {
            name: "web".parse().unwrap(),
            images: images.iter().map(|(image, _)| image.parse().unwrap()).collect(),
            size_gib: 20,
            retention_days: 0,
            cluster: "c".into(),
            pull_secrets: Vec::new(),
        };
        let time = DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds);
        let mut record = Record::new(CacheId::random(), "team".parse().unwrap(), spec, time);
        record.set_status(Status::Available, time, "sealed");
        let sealed = images.iter().map(|(image, _)| SealedImage {
            reference: (*image).to_owned(),
            index: Some(Digest::sha256(format!("index of {image}").as_bytes())),
            manifest: Digest::sha256(image.as_bytes()),
        });
        let layers = images.iter().map(|(image, bytes)| LayerHistory {
            blob: Digest::sha256(image.as_bytes()),
            images: vec![(*image).to_owned()],
            compressed_size: *bytes,
            size: *bytes,
            elapsed_ms: 1,
            origin: Origin::Fetched,
            from: None,
        });
        record.content = Some(Content {
            generation: 1,
            sealed_at: time,
            digest: Digest::sha256(b""),
            images: sealed.collect(),
            totals: Totals::default(),
            layers: layers.collect(),
            snapshot: None,
        });
        record
    }

    fn references(images: &[&str]) -> Vec<ImageReference> {
        images.iter().map(|image| image.parse().unwrap()).collect()
    }

    #[test]
    fn images_then_bytes_then_age() {
        let two = record(&[("a:1", 1), ("b:1", 1)], 0);
        let large = record(&[("a:1", 100)], 1);
        let old = record(&[("a:1", 5), ("c:1", 900)], 2);
        let new = record(&[("a:1", 5)], 3);
        let all = [two.clone(), large.clone(), old, new.clone()];
        let best_for = |images: &[&str]| best(&all, &references(images));
        assert_eq!(best_for(&["a:1", "b:1"]).unwrap().record.id, two.id);
        assert_eq!(best_for(&["a:1"]).unwrap().record.id, large.id);
        assert_eq!(best_for(&["a:1", "docker.io/library/a:1"]).unwrap().score.images, 1);
        assert_eq!(best_for(&["a:1", "d:1"]).unwrap().score.missing, references(&["d:1"]));
        assert_eq!(best([&all[2], &new], &references(&["a:1"])).unwrap().record.id, new.id);
        assert_eq!(best_for(&["d:1"]), None);
        let (mut first, mut second) = (new.clone(), new.clone());
        (first.id, second.id) = (first.id.min(two.id), first.id.max(two.id));
        let tied = [second.clone(), first.clone(), second];
        assert_eq!(
            best(&tied, &references(&["a:1"])).unwrap().record.id,
            first.id,
            "the smaller ID of two alike"
        );
        let mut failed = new;
        failed.status = Status::Unavailable;
        assert_eq!(best([&failed], &references(&["a:1"])), None);
    }
}
