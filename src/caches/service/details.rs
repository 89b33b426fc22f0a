//! Details of a cache that the vendor's API lacks.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::caches::progress::{LayerState, Progress};
use crate::caches::record::{CacheEvent, ImageDetails, Origin, Record};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::image_cache::CacheId;
use larder_model::seal::Totals;

/// The details of a cache: of its build while it is in progress, otherwise of its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Digest of the content that `cache.json` on the served volume describes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<Digest>,
    /// Time at which the served volume was sealed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sealed_at: Option<DateTime<Utc>>,
    /// Time at which the retention ends.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_at: Option<DateTime<Utc>>,
    /// The class of the failure that the message describes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub class: Option<Class>,
    /// Size of the archive that the cache was imported from, bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub archive: Option<u64>,
    /// `true` if a new volume is being filled next to the served one.
    pub refreshing: bool,
    /// Number of builders started for the current build.
    pub attempts: u32,
    /// Bytes that the build fetches. `None` until planning is complete.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fetch_bytes: Option<u64>,
    /// The images that are resolved so far.
    pub images: Vec<ImageDetails>,
    /// The layers that were started so far.
    pub layers: Vec<LayerDetails>,
    /// Sums over the served volume.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub totals: Option<Totals>,
    /// The most recent events, oldest first.
    pub events: Vec<CacheEvent>,
}

/// The state of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerDetails {
    /// Digest of the blob.
    pub blob: Digest,
    /// Images that contain it, as given.
    pub images: Vec<String>,
    /// Compressed size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes; 0 until it is known.
    pub size: u64,
    /// Bytes of the blob received so far.
    pub received: u64,
    /// The progress of the layer.
    pub state: LayerState,
    /// The source of the layer.
    pub origin: Origin,
    /// The cache whose volume the layer was copied from. `None` for other sources.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<CacheId>,
    /// Time from the start of its fetch until its end, or until now; milliseconds.
    pub elapsed_ms: u64,
}

impl Details {
    pub(super) fn of(record: &Record, live: Option<&Progress>) -> Self {
        let content = record.content.as_ref();
        let layers: Vec<LayerDetails> = match (live, content) {
            (Some(progress), _) => running(progress),
            (None, Some(content)) => content.layers.iter().map(done).collect(),
            (None, None) => Vec::new(),
        };
        let images = match (live, content) {
            (Some(progress), _) => images(progress),
            (None, _) if record.work.is_some() && !record.progress.is_empty() => record.progress.clone(),
            (None, Some(content)) => {
                let images = content.images.iter();
                images.map(|known| image(&known.reference, &known.manifest, &layers)).collect()
            }
            (None, None) => Vec::new(),
        };
        Details {
            digest: content.map(|content| content.digest.clone()),
            sealed_at: content.map(|content| content.sealed_at),
            expires_at: record.expires_at(),
            class: record.class,
            archive: record.import.map(|import| import.bytes),
            refreshing: record.is_refreshing(),
            attempts: record.work.as_ref().map_or(0, |work| work.attempts),
            fetch_bytes: live.and_then(|progress| progress.fetch_bytes),
            images,
            layers,
            totals: content.map(|content| content.totals),
            events: record.events.iter().cloned().collect(),
        }
    }
}

/// Returns the images of a build that are resolved so far.
pub(super) fn images(progress: &Progress) -> Vec<ImageDetails> {
    let layers = running(progress);
    let images = progress.images.iter().map(|known| {
        let begun = image(&known.reference, &known.manifest, &layers);
        // The same layer can be in an image more than once.
        let layers = known.layers.max(begun.layers);
        ImageDetails { layers, compressed_size: known.compressed_size, ..begun }
    });
    images.collect()
}

fn image(reference: &str, manifest: &Digest, layers: &[LayerDetails]) -> ImageDetails {
    let has_it = |layer: &&LayerDetails| layer.images.iter().any(|image| image == reference);
    let of_it: Vec<&LayerDetails> = layers.iter().filter(has_it).collect();
    ImageDetails {
        layers: of_it.len(),
        layers_done: of_it.iter().filter(|layer| layer.state == LayerState::Committed).count(),
        compressed_size: of_it.iter().map(|layer| layer.compressed_size).sum(),
        received: of_it
            .iter()
            .filter(|layer| layer.origin == Origin::Fetched)
            .map(|layer| layer.received)
            .sum(),
        reference: reference.to_owned(),
        manifest: manifest.clone(),
    }
}

fn running(progress: &Progress) -> Vec<LayerDetails> {
    let layers = progress.layers.iter().map(|layer| LayerDetails {
        blob: layer.blob.clone(),
        images: layer.images.clone(),
        compressed_size: layer.compressed_size,
        size: layer.size,
        received: layer.received,
        state: layer.state,
        origin: layer.origin,
        from: layer.from,
        elapsed_ms: layer.elapsed_ms,
    });
    layers.collect()
}

fn done(layer: &crate::caches::record::LayerHistory) -> LayerDetails {
    LayerDetails {
        blob: layer.blob.clone(),
        images: layer.images.clone(),
        compressed_size: layer.compressed_size,
        size: layer.size,
        received: if layer.origin == Origin::Fetched { layer.compressed_size } else { 0 },
        state: LayerState::Committed,
        origin: layer.origin,
        from: layer.from,
        elapsed_ms: layer.elapsed_ms,
    }
}
