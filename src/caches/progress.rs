//! Build progress, accumulated from the builder's output.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::layout;
use super::record::{LayerHistory, MAX_LAYERS, Origin};
use larder_model::digest::Digest;
use larder_model::event::{Event, Line};
use larder_model::image_cache::CacheId;
use larder_model::job::MAX_IMAGES;
use larder_model::seal;

/// Maximum size of the references kept for one build, bytes. Each layer names its images, so an order of long
/// references and many layers would otherwise use much memory.
const MAX_TEXT: usize = 1 << 20;

/// The progress of a build so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Resolved images, in the order of their events.
    pub images: Vec<ImageProgress>,
    /// Started layers, in the order of their events.
    pub layers: Vec<LayerProgress>,
    /// Bytes to fetch. `None` until planning is complete.
    pub fetch_bytes: Option<u64>,
    at: HashMap<Digest, usize>,
    /// Remaining budget for text.
    text: Budget,
}

/// The unused part of [`MAX_TEXT`].
#[derive(Clone, Debug)]
struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Budget(MAX_TEXT)
    }
}

impl Budget {
    /// Copies the names of images if the budget allows it.
    fn keep<'a>(&mut self, names: impl Iterator<Item = &'a String> + Clone) -> Vec<String> {
        let size: usize = names.clone().map(|name| size_of::<String>() + name.len()).sum();
        match self.0.checked_sub(size) {
            Some(left) => {
                self.0 = left;
                names.cloned().collect()
            }
            None => Vec::new(),
        }
    }
}

/// The progress of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProgress {
    /// The image reference as given.
    pub reference: String,
    /// Digest of the manifest that it resolved to.
    pub manifest: Digest,
    /// Number of its layers.
    pub layers: usize,
    /// Compressed size of its layers, bytes.
    pub compressed_size: u64,
}

/// The progress of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerProgress {
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
    /// Bytes of content written so far.
    pub written: u64,
    /// The stage of the layer.
    pub state: LayerState,
    /// The source of the layer.
    pub origin: Origin,
    /// The cache whose volume the layer is copied from. `None` for other sources.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<CacheId>,
    /// Time at which it was started.
    pub started_at: DateTime<Utc>,
    /// Time until it was done, or until the last event; milliseconds.
    pub elapsed_ms: u64,
}

/// The stage of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// The layer is being fetched and extracted.
    Running,
    /// The layer is on the volume.
    Committed,
}

impl Progress {
    /// Applies a line of the builder's output. The builder is not trusted, so the amount of kept data is
    /// bounded.
    pub fn take(&mut self, line: &Line) {
        match &line.event {
            Event::Resolved { reference, manifest, layers, compressed_size, .. } => {
                // A restarted builder resolves its images again.
                let known = self.images.iter().position(|known| known.reference == *reference);
                let kept = match known {
                    Some(_) => Some(reference.clone()),
                    None if self.images.len() < MAX_IMAGES => {
                        self.text.keep(std::iter::once(reference)).pop()
                    }
                    None => None,
                };
                let Some(reference) = kept else { return };
                let image = ImageProgress {
                    reference,
                    manifest: manifest.clone(),
                    layers: *layers,
                    compressed_size: *compressed_size,
                };
                match known {
                    Some(at) => self.images[at] = image,
                    None => self.images.push(image),
                }
            }
            Event::Planned { fetch_bytes, .. } => self.fetch_bytes = Some(*fetch_bytes),
            Event::LayerStarted { blob, compressed_size, images, from } => {
                let images = self.text.keep(images.iter());
                if let Some(layer) = self.layer(blob, line.time) {
                    (layer.compressed_size, layer.images) = (*compressed_size, images);
                    layer.from = from.as_deref().and_then(layout::parse_volume).map(|(id, _)| id);
                    layer.origin = if from.is_some() { Origin::Reused } else { Origin::Fetched };
                }
            }
            Event::LayerProgress { blob, received, written } => {
                if let Some(layer) = self.layer(blob, line.time) {
                    (layer.received, layer.written) = (*received, *written);
                    layer.elapsed_ms = since(layer.started_at, line.time);
                }
            }
            Event::LayerCommitted { blob, size, .. } => {
                if let Some(layer) = self.layer(blob, line.time) {
                    layer.size = *size;
                    if layer.origin == Origin::Fetched {
                        layer.received = layer.compressed_size;
                    }
                    layer.elapsed_ms = since(layer.started_at, line.time);
                    layer.state = LayerState::Committed;
                }
            }
            Event::LayerPresent { blob, .. } => {
                if let Some(layer) = self.layer(blob, line.time) {
                    layer.state = LayerState::Committed;
                    layer.origin = Origin::Present;
                }
            }
            _ => {}
        }
    }

    /// Returns the history to store with a sealed volume: the layers that `sealed` names, each blob once.
    pub fn history(&self, sealed: &seal::Content) -> Vec<LayerHistory> {
        let mut text = Budget::default();
        let mut at: HashMap<&Digest, usize> = HashMap::new();
        let mut layers: Vec<LayerHistory> = Vec::new();
        for layer in &sealed.layers {
            if layers.len() == MAX_LAYERS {
                break;
            }
            let known = self.at.get(&layer.blob).and_then(|at| self.layers.get(*at));
            let at = *at.entry(&layer.blob).or_insert_with(|| {
                layers.push(LayerHistory {
                    blob: layer.blob.clone(),
                    images: Vec::new(),
                    compressed_size: layer.compressed_size,
                    size: layer.size,
                    elapsed_ms: known.map_or(0, |known| known.elapsed_ms),
                    origin: known.map_or(Origin::Present, |known| known.origin),
                    from: known.and_then(|known| known.from),
                });
                layers.len() - 1
            });
            let have = sealed.images.iter().filter(|image| image.chain.contains(&layer.chain_id));
            let new = have.map(|image| &image.reference).filter(|name| !layers[at].images.contains(name));
            let new = text.keep(new);
            layers[at].images.extend(new);
        }
        layers
    }

    /// Returns the history to store if the seal cannot be read: the layers that were reported as committed.
    pub fn committed_layers(&self) -> Vec<LayerHistory> {
        let committed = self.layers.iter().filter(|layer| layer.state == LayerState::Committed);
        let layers = committed.map(|layer| LayerHistory {
            blob: layer.blob.clone(),
            images: layer.images.clone(),
            compressed_size: layer.compressed_size,
            size: layer.size,
            elapsed_ms: layer.elapsed_ms,
            origin: layer.origin,
            from: layer.from,
        });
        layers.collect()
    }

    fn layer(&mut self, blob: &Digest, now: DateTime<Utc>) -> Option<&mut LayerProgress> {
        if let Some(at) = self.at.get(blob) {
            return self.layers.get_mut(*at);
        }
        if self.layers.len() == MAX_LAYERS {
            return None;
        }
        self.at.insert(blob.clone(), self.layers.len());
        self.layers.push(LayerProgress {
            blob: blob.clone(),
            images: Vec::new(),
            compressed_size: 0,
            size: 0,
            received: 0,
            written: 0,
            state: LayerState::Running,
            origin: Origin::Fetched,
            from: None,
            started_at: now,
            elapsed_ms: 0,
        });
        self.layers.last_mut()
    }
}

fn since(start: DateTime<Utc>, now: DateTime<Utc>) -> u64 {
    u64::try_from((now - start).num_milliseconds()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::chain::ChainId;

    #[test]
    fn kept_data_is_bounded() {
        let mut progress = Progress::default();
        let images: Vec<String> = (0..20).map(|n| format!("{n}{}", "x".repeat(1000))).collect();
        for layer in 0..u32::try_from(MAX_LAYERS).unwrap() + 10 {
            let blob = Digest::sha256(&layer.to_be_bytes());
            let event = Event::LayerStarted { blob, compressed_size: 1, images: images.clone(), from: None };
            progress.take(&Line { v: 1, time: DateTime::UNIX_EPOCH, event });
        }
        assert_eq!((progress.layers.len(), progress.layers[0].images.len()), (MAX_LAYERS, 20));
        let kept: usize = progress.layers.iter().flat_map(|layer| &layer.images).map(String::len).sum();
        assert!((MAX_TEXT / 2..MAX_TEXT).contains(&kept), "{kept}");
    }

    #[test]
    fn a_layer_from_start_to_commit() {
        let blob = Digest::sha256(b"blob");
        let start = DateTime::UNIX_EPOCH;
        let line = |ms: i64, event| Line { v: 1, time: start + chrono::TimeDelta::milliseconds(ms), event };
        let mut progress = Progress::default();
        let images = vec!["app:1".to_owned()];
        progress.take(&line(
            0,
            Event::LayerStarted { blob: blob.clone(), compressed_size: 10, images, from: None },
        ));
        progress.take(&line(500, Event::LayerProgress { blob: blob.clone(), received: 4, written: 9 }));
        assert_eq!((progress.layers[0].received, progress.layers[0].elapsed_ms), (4, 500));
        assert_eq!(progress.layers[0].state, LayerState::Running);
        let json = serde_json::json!({
            "v": 1, "time": "1970-01-01T00:00:01.500Z", "event": "layer_committed", "blob": blob,
            "diff_id": blob, "chain_id": ChainId::chain(std::slice::from_ref(&blob))[0], "size": 30, "entries": 3,
        });
        progress.take(&serde_json::from_value(json).unwrap());
        assert_eq!((progress.layers[0].elapsed_ms, progress.layers[0].size), (1500, 30));
        assert_eq!(progress.layers[0].state, LayerState::Committed);
    }
}
