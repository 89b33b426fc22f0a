//! The timeline of a build: the stages of each image and layer, and the steps that determined the duration.
//!
//! It is made of the events of the builder, which is not trusted, so everything in it is bounded.

mod critical;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::event::{Event, Line};
use super::size::ByteSize;

pub use critical::{Stage, Step};

/// Version of the format.
pub const VERSION: u32 = 1;
/// Maximum number of layers. The rest is counted in [`Timeline::omitted`].
pub const MAX_LAYERS: usize = 512;
/// Maximum number of images, as in a job.
const MAX_IMAGES: usize = super::job::MAX_IMAGES;
/// Maximum number of syncs and of retries.
const MAX_MARKS: usize = 256;
/// Maximum length of a text, characters.
const MAX_TEXT: usize = 256;

/// A period of a build, in milliseconds since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Start of the period.
    pub start_ms: u64,
    /// End of the period.
    pub end_ms: u64,
}

impl Span {
    /// Returns the duration, milliseconds.
    pub fn duration_ms(self) -> u64 {
        self.end_ms.saturating_sub(self.start_ms)
    }
}

/// The timeline of one build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Version of the format, [`VERSION`].
    pub version: u32,
    /// Time at which the build started.
    pub started_at: DateTime<Utc>,
    /// Duration until the last event, milliseconds.
    pub elapsed_ms: u64,
    /// The images, in the order in which they were resolved.
    pub images: Vec<ImageTimeline>,
    /// The layers, in the order in which they were started.
    pub layers: Vec<LayerTimeline>,
    /// Number of layers that are not listed, because there are too many.
    pub omitted: usize,
    /// Periods in which the volume was flushed to the disk.
    pub syncs: Vec<Span>,
    /// Period between the last layer and the seal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seal: Option<Span>,
    /// Requests that failed and were repeated.
    pub retries: Vec<Retry>,
}

/// The resolution of one image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageTimeline {
    /// The reference as given.
    pub reference: String,
    /// Period from the start of the build until its manifest was known.
    pub resolve: Span,
}

/// The source of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSource {
    /// A registry or an archive.
    Fetched,
    /// Another volume of this host.
    Reused,
    /// An earlier attempt at the same volume.
    Present,
}

/// The stages of one layer. A stage that was not reached is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerTimeline {
    /// Digest of the blob.
    pub blob: Digest,
    /// Number of images that contain it.
    pub images: usize,
    /// The source of the layer.
    pub source: LayerSource,
    /// Compressed size of the blob, bytes.
    pub compressed_size: u64,
    /// Size of the tar, bytes; 0 until it is known.
    pub size: u64,
    /// Transfer: from the start until the last byte. The extraction runs at the same time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub download: Option<Span>,
    /// Part of the transfer in which the extraction waited for data, milliseconds.
    pub waited_ms: u64,
    /// Extraction after the last byte has arrived.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unpack: Option<Span>,
    /// Wait for the parents of the layer, or for its turn to be committed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wait: Option<Span>,
    /// Commit. For a layer with several parents: from its first commit until its last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub commit: Option<Span>,
}

impl LayerTimeline {
    /// Returns the end of the last stage, or 0 for a layer without stages.
    pub fn end_ms(&self) -> u64 {
        let spans = [self.download, self.unpack, self.wait, self.commit];
        spans.into_iter().flatten().map(|span| span.end_ms).max().unwrap_or_default()
    }

    /// Returns `true` if the network was slower than the extraction: it waited for data for more than half
    /// of the transfer.
    pub fn waits_for_network(&self) -> bool {
        self.download.is_some_and(|span| self.waited_ms.saturating_mul(2) > span.duration_ms())
    }
}

/// A request that was repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Time of the failure, milliseconds since the start.
    pub at_ms: u64,
    /// Host and port of the request.
    pub host: String,
    /// Reason for the retry.
    pub reason: String,
}

/// Collects the events of a build into its timeline.
#[derive(Clone, Debug, Default)]
pub struct Recorder {
    timeline: Option<Timeline>,
    at: HashMap<Digest, usize>,
}

impl Recorder {
    /// Applies a line of the builder's output.
    pub fn take(&mut self, line: &Line) {
        let timeline = self.timeline.get_or_insert_with(|| Timeline::new(line.time));
        let now = milliseconds(line.time - timeline.started_at);
        timeline.elapsed_ms = timeline.elapsed_ms.max(now);
        match &line.event {
            Event::Resolved { reference, .. } => timeline.resolved(reference, now),
            Event::LayerStarted { blob, compressed_size, images, from } => {
                let source = if from.is_some() { LayerSource::Reused } else { LayerSource::Fetched };
                if let Some(layer) = layer(timeline, &mut self.at, blob) {
                    (layer.source, layer.images) = (source, images.len());
                    layer.compressed_size = *compressed_size;
                    layer.download = Some(Span { start_ms: now, end_ms: now });
                }
            }
            Event::LayerProgress { blob, received, .. } => {
                let running = layer(timeline, &mut self.at, blob).filter(|layer| layer.unpack.is_none());
                if let Some((layer, span)) =
                    running.and_then(|layer| Some((layer.compressed_size, layer.download.as_mut()?)))
                    && *received <= layer
                {
                    span.end_ms = now;
                }
            }
            Event::LayerExtracted { blob, received_ms, waited_ms } => {
                if let Some(layer) = layer(timeline, &mut self.at, blob) {
                    layer.extracted(now, *received_ms, *waited_ms);
                }
            }
            Event::LayerCommitted { blob, size, elapsed_ms, .. } => {
                if let Some(layer) = layer(timeline, &mut self.at, blob) {
                    layer.size = *size;
                    layer.committed(now, *elapsed_ms);
                }
            }
            Event::LayerPresent { blob, .. } => {
                if let Some(layer) = layer(timeline, &mut self.at, blob) {
                    layer.source = LayerSource::Present;
                }
            }
            Event::Synced { elapsed_ms, .. } if timeline.syncs.len() < MAX_MARKS => {
                timeline.syncs.push(Span { start_ms: now.saturating_sub(*elapsed_ms), end_ms: now });
            }
            Event::Retried { host, reason, .. } if timeline.retries.len() < MAX_MARKS => {
                timeline.retries.push(Retry { at_ms: now, host: short(host), reason: short(reason) });
            }
            Event::ConnectionReplaced { host, rate, median, .. } if timeline.retries.len() < MAX_MARKS => {
                let reason =
                    format!("slow connection: {}/s, others {}/s", ByteSize(*rate), ByteSize(*median));
                timeline.retries.push(Retry { at_ms: now, host: short(host), reason });
            }
            Event::Sealed { .. } => timeline.sealed(now),
            _ => {}
        }
    }

    /// Returns the timeline so far; `None` before the first event.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }
}

impl Timeline {
    /// Creates the timeline of a build that has just started.
    pub(crate) fn new(started_at: DateTime<Utc>) -> Self {
        Timeline {
            version: VERSION,
            started_at,
            elapsed_ms: 0,
            images: Vec::new(),
            layers: Vec::new(),
            omitted: 0,
            syncs: Vec::new(),
            seal: None,
            retries: Vec::new(),
        }
    }

    fn resolved(&mut self, reference: &str, now: u64) {
        // A restarted builder resolves its images again.
        let reference = short(reference);
        if self.images.len() < MAX_IMAGES && !self.images.iter().any(|image| image.reference == reference) {
            let resolve = Span { start_ms: 0, end_ms: now };
            self.images.push(ImageTimeline { reference, resolve });
        }
    }

    fn sealed(&mut self, now: u64) {
        let last = self.layers.iter().map(LayerTimeline::end_ms).max().unwrap_or_default();
        self.seal = Some(Span { start_ms: last.min(now), end_ms: now });
    }
}

impl LayerTimeline {
    fn extracted(&mut self, now: u64, received_ms: u64, waited_ms: u64) {
        let start_ms = self.download.map_or(now, |span| span.start_ms);
        let received = start_ms.saturating_add(received_ms).min(now);
        self.download = Some(Span { start_ms, end_ms: received });
        self.unpack = Some(Span { start_ms: received, end_ms: now });
        self.waited_ms = waited_ms.min(received.saturating_sub(start_ms));
    }

    fn committed(&mut self, now: u64, elapsed_ms: u64) {
        // A layer of several chains is committed more than once.
        if let Some(commit) = &mut self.commit {
            commit.end_ms = commit.end_ms.max(now);
            return;
        }
        let ready = self.end_ms().min(now);
        let start_ms = now.saturating_sub(elapsed_ms).max(ready);
        self.wait = Some(Span { start_ms: ready, end_ms: start_ms });
        self.commit = Some(Span { start_ms, end_ms: now });
    }
}

/// Returns the row of a layer, and adds it if there is room.
fn layer<'a>(
    timeline: &'a mut Timeline,
    at: &mut HashMap<Digest, usize>,
    blob: &Digest,
) -> Option<&'a mut LayerTimeline> {
    if let Some(at) = at.get(blob) {
        return timeline.layers.get_mut(*at);
    }
    if timeline.layers.len() == MAX_LAYERS {
        timeline.omitted = timeline.omitted.saturating_add(1);
        return None;
    }
    at.insert(blob.clone(), timeline.layers.len());
    timeline.layers.push(LayerTimeline {
        blob: blob.clone(),
        images: 0,
        source: LayerSource::Fetched,
        compressed_size: 0,
        size: 0,
        download: None,
        waited_ms: 0,
        unpack: None,
        wait: None,
        commit: None,
    });
    timeline.layers.last_mut()
}

fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

fn milliseconds(delta: chrono::TimeDelta) -> u64 {
    u64::try_from(delta.num_milliseconds()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::chain::ChainId;

    pub(super) fn blob(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    /// Records events, each at a time in milliseconds.
    pub(super) fn recorded(events: impl IntoIterator<Item = (i64, Event)>) -> Timeline {
        let mut recorder = Recorder::default();
        for (at, event) in events {
            let time = DateTime::UNIX_EPOCH + TimeDelta::milliseconds(at);
            recorder.take(&Line { v: crate::event::VERSION, time, event });
        }
        recorder.timeline().unwrap().clone()
    }

    pub(super) fn resolved(reference: &str) -> Event {
        Event::Resolved {
            reference: reference.into(),
            manifest: blob("manifest"),
            platform: crate::platform::Platform::new("linux", "amd64", ""),
            layers: 1,
            compressed_size: 1,
        }
    }

    pub(super) fn started(name: &str) -> Event {
        Event::LayerStarted { blob: blob(name), compressed_size: 100, images: vec!["a".into()], from: None }
    }

    pub(super) fn extracted(name: &str, received_ms: u64, waited_ms: u64) -> Event {
        Event::LayerExtracted { blob: blob(name), received_ms, waited_ms }
    }

    pub(super) fn committed(name: &str, elapsed_ms: u64) -> Event {
        let (blob, chain_id) = (blob(name), ChainId::base(&blob(name)));
        Event::LayerCommitted { chain_id, blob, diff_id: None, size: 1000, entries: 1, elapsed_ms }
    }

    pub(super) fn sealed() -> Event {
        Event::Sealed { digest: blob("sealed") }
    }

    #[test]
    fn stages_follow_each_other() {
        let timeline = recorded([
            (0, started("a")),
            (10, started("b")),
            (50, Event::LayerProgress { blob: blob("a"), received: 60, written: 0 }),
            (300, extracted("a", 200, 150)),
            (320, committed("a", 15)),
            (330, Event::Synced { layers: 1, elapsed_ms: 30 }),
            (400, sealed()),
        ]);
        let layer = &timeline.layers[0];
        let span = |start_ms, end_ms| Some(Span { start_ms, end_ms });
        assert_eq!((layer.download, layer.unpack), (span(0, 200), span(200, 300)));
        assert_eq!((layer.wait, layer.commit), (span(300, 305), span(305, 320)));
        assert!(layer.waits_for_network());
        assert_eq!(timeline.syncs, [Span { start_ms: 300, end_ms: 330 }]);
        assert_eq!((timeline.seal, timeline.elapsed_ms), (span(320, 400), 400));
        assert_eq!(timeline.layers[1].download, span(10, 10));
        let json = serde_json::to_string(&timeline).unwrap();
        assert_eq!(serde_json::from_str::<Timeline>(&json).unwrap(), timeline);
    }

    #[test]
    fn a_hostile_builder_cannot_exceed_the_bounds() {
        let many = (0..MAX_LAYERS + 5).map(|number| (1, started(&number.to_string())));
        let retry =
            Event::Retried { host: "h".repeat(9999), what: "x".into(), reason: "r".into(), wait_ms: 1 };
        let retries = (0..MAX_MARKS + 5).map(|_| (1, retry.clone()));
        // Events out of order, and with times before the start.
        let odd =
            [(-50, extracted("0", u64::MAX, u64::MAX)), (-60, committed("0", u64::MAX)), (-70, sealed())];
        let timeline = recorded(many.chain(retries).chain(odd));
        assert_eq!((timeline.layers.len(), timeline.omitted), (MAX_LAYERS, 5));
        assert_eq!((timeline.retries.len(), timeline.retries[0].host.len()), (MAX_MARKS, MAX_TEXT));
        for layer in &timeline.layers {
            for span in [layer.download, layer.unpack, layer.wait, layer.commit].into_iter().flatten() {
                assert!(span.start_ms <= span.end_ms, "{layer:?}");
            }
        }
        assert!(timeline.critical_path().len() <= 5 * MAX_LAYERS + 3);
    }
}
