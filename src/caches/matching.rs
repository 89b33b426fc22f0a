//! Which image cache serves a workload best: most of its images, then most bytes, then the newest.

use std::cmp::Reverse;

use super::record::{Content, Record};
use crate::model::image_cache::Status;
use crate::model::reference::ImageReference;

/// The best cache for a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The cache.
    pub record: Record,
    /// Distinct images of the workload that it holds.
    pub images: usize,
    /// Compressed bytes of these images, a layer that several share counted once.
    pub bytes: u64,
}

/// The best of `records`; none where no Available cache holds any of the images.
pub fn best(records: impl IntoIterator<Item = Record>, images: &[ImageReference]) -> Option<Found> {
    let found = records.into_iter().filter_map(|record| score(record, images));
    found.max_by_key(|found| {
        let sealed = found.record.content.as_ref().map(|content| content.sealed_at);
        (found.images, found.bytes, sealed, Reverse(found.record.id))
    })
}

fn score(record: Record, wanted: &[ImageReference]) -> Option<Found> {
    if record.status != Status::Available {
        return None;
    }
    let content = record.content.as_ref()?;
    let mut held: Vec<&str> = Vec::new();
    let mut seen: Vec<&ImageReference> = Vec::new();
    for image in wanted {
        if seen.contains(&image) {
            continue;
        }
        seen.push(image);
        if let Some(reference) = holds(content, image) {
            held.push(reference);
        }
    }
    let of_held = |layer: &&super::record::LayerHistory| {
        layer.images.iter().any(|image| held.iter().any(|reference| reference == image))
    };
    let bytes = content.layers.iter().filter(of_held).map(|layer| layer.compressed_size).sum();
    (!held.is_empty()).then_some(Found { images: held.len(), bytes, record })
}

/// The reference, as it was given to the cache, of the image that serves `wanted`: one of the same repository with the digest
/// that is asked for, its own or its index's (what a workload is pinned to is most often the index), or, where none is, one
/// that was ordered by the same name and tag.
fn holds<'a>(content: &'a Content, wanted: &ImageReference) -> Option<&'a str> {
    let serves = |image: &&crate::model::event::SealedImage| {
        let Ok(held) = image.reference.parse::<ImageReference>() else { return false };
        match wanted.digest() {
            Some(digest) => {
                let digests = [Some(&image.manifest), image.index.as_ref(), held.digest()];
                held.name() == wanted.name() && digests.contains(&Some(digest))
            }
            None => held == *wanted,
        }
    };
    content.images.iter().find(serves).map(|image| image.reference.as_str())
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    use super::*;
    use crate::caches::record::{LayerHistory, Origin};
    use crate::model::digest::Digest;
    use crate::model::event::SealedImage;
    use crate::model::image_cache::{CacheId, Spec};
    use crate::model::seal::Totals;

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
        record.turn(Status::Available, time, "sealed");
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
        let best_for = |images: &[&str]| best(all.clone(), &references(images));
        assert_eq!(best_for(&["a:1", "b:1"]).unwrap().record.id, two.id);
        assert_eq!(best_for(&["a:1"]).unwrap().record.id, large.id);
        assert_eq!(best_for(&["a:1", "docker.io/library/a:1"]).unwrap().images, 1);
        assert_eq!(best([all[2].clone(), new.clone()], &references(&["a:1"])).unwrap().record.id, new.id);
        assert_eq!(best_for(&["d:1"]), None);
        let mut failed = new;
        failed.status = Status::Unavailable;
        assert_eq!(best([failed], &references(&["a:1"])), None);
    }

    #[test]
    fn a_digest_decides_over_a_tag() {
        let held = record(&[("a:1", 1)], 0);
        let digest = Digest::sha256(b"a:1");
        let other = Digest::sha256(b"other");
        let by = |text: String| best([held.clone()], &references(&[&text]));
        assert!(by(format!("a@{digest}")).is_some());
        assert!(by(format!("a:2@{digest}")).is_some());
        assert!(by(format!("a@{}", Digest::sha256(b"index of a:1"))).is_some());
        assert!(by(format!("b@{digest}")).is_none(), "another repository");
        assert!(by(format!("a:1@{other}")).is_none());
    }
}
