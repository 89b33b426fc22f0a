//! How far a build is: a fold over what the builder says.

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

/// Most bytes of references that are kept of one build: each layer names the images that have it, and an order of many
/// long references to images of many layers is soon made.
const MAX_TEXT: usize = 1 << 20;

/// A build as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Images that are resolved, in the order in which they were.
    pub images: Vec<ImageProgress>,
    /// Layers that were begun, in that order.
    pub layers: Vec<LayerProgress>,
    /// Bytes to fetch, once the plan stands.
    pub fetch_bytes: Option<u64>,
    at: HashMap<Digest, usize>,
    /// Bytes of text kept so far.
    text: Budget,
}

/// What is left of [`MAX_TEXT`].
#[derive(Clone, Debug)]
struct Budget(usize);

impl Default for Budget {
    fn default() -> Self {
        Budget(MAX_TEXT)
    }
}

impl Budget {
    /// The names of images, where there is room for them.
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

/// One image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProgress {
    /// The reference as given.
    pub reference: String,
    /// The manifest it stands for.
    pub manifest: Digest,
    /// Its layers.
    pub layers: usize,
    /// Their compressed size, bytes.
    pub compressed_size: u64,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// Digest of the blob.
    pub blob: Digest,
    /// Images that have it, as given.
    pub images: Vec<String>,
    /// Size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes; 0 until it is known.
    pub size: u64,
    /// Bytes of the blob received.
    pub received: u64,
    /// Bytes of content written.
    pub written: u64,
    /// How far it is.
    pub state: LayerState,
    /// Where it comes from.
    pub origin: Origin,
    /// The cache whose volume it is read from, where it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<CacheId>,
    /// When it was begun.
    pub started_at: DateTime<Utc>,
    /// Until it was done, or until now; milliseconds.
    pub elapsed_ms: u64,
}

/// How far a layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// It is being fetched and extracted.
    Running,
    /// It is on the volume.
    Committed,
}

impl Progress {
    /// Takes up what the builder said. It is not trusted: what it says is bounded.
    pub fn take(&mut self, line: &Line) {
        match &line.event {
            Event::Resolved { reference, manifest, layers, compressed_size, .. } => {
                // A builder that was started again resolves again.
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

    /// What is kept of it when the volume is sealed: the layers that `sealed` names, each blob once.
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

    /// What is kept of it where the seal cannot be read: the layers that were said to be committed.
    pub fn told(&self) -> Vec<LayerHistory> {
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
    fn what_is_kept_is_bounded() {
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
