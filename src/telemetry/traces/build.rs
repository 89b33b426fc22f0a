//! The trace of one build, from the events of its builder.
//!
//! ```text
//! build ─┬─ resolve, layers, seal      the stages
//!        └─ image (each)               until its last layer is committed
//!             └─ layer (each)          from the start of its transfer to its commit
//! ```
//! A layer of several images belongs to the first one.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use larder_model::digest::Digest;
use larder_model::escape::escape;
use larder_model::event::{Event, Line, Outcome, Status};
use larder_model::job::MAX_IMAGES;

/// Maximum number of layers with a span.
const MAX_LAYERS: usize = 4096;
/// Maximum length of a reference with a span, bytes.
const MAX_TEXT: usize = 512;

/// Identity of a span.
type SpanId = [u8; 8];

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Text(String),
    Number(u64),
}

/// One span of a trace.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) id: SpanId,
    /// The parent; `None` for the build.
    pub(super) parent: Option<SpanId>,
    pub(super) name: &'static str,
    pub(super) start: DateTime<Utc>,
    pub(super) end: DateTime<Utc>,
    pub(super) attributes: Vec<(&'static str, Attribute)>,
    pub(super) failed: bool,
}

/// The trace of a build so far. It contains no credentials: only names, digests, sizes and times.
#[derive(Debug)]
pub struct BuildTrace {
    trace: [u8; 16],
    build: Option<Span>,
    attributes: Vec<(&'static str, Attribute)>,
    id: SpanId,
    planned: Option<DateTime<Utc>>,
    committed: Option<DateTime<Utc>>,
    stages: Vec<Span>,
    images: Vec<Span>,
    /// Position in `images`, by reference.
    by_reference: HashMap<String, usize>,
    layers: Vec<Layer>,
    /// Position in `layers`, by blob.
    by_blob: HashMap<Digest, usize>,
}

/// A layer, and the positions of its images.
#[derive(Debug)]
struct Layer {
    span: Span,
    images: Vec<usize>,
    is_done: bool,
}

impl BuildTrace {
    /// Creates the trace of a build that `attributes` describe.
    pub(super) fn new(attributes: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let attributes = attributes.into_iter().map(|(key, text)| (key, Attribute::Text(text))).collect();
        BuildTrace {
            trace: Uuid::new_v4().into_bytes(),
            build: None,
            attributes,
            id: span_id(),
            planned: None,
            committed: None,
            stages: Vec::new(),
            images: Vec::new(),
            by_reference: HashMap::new(),
            layers: Vec::new(),
            by_blob: HashMap::new(),
        }
    }

    /// Adds a line of the builder's output. The builder is not trusted, so the number of spans is bounded.
    pub fn take(&mut self, line: &Line) {
        let now = line.time;
        let id = self.id;
        let attributes = &mut self.attributes;
        let build = self.build.get_or_insert_with(|| Span {
            id,
            parent: None,
            name: "build",
            start: now,
            end: now,
            attributes: std::mem::take(attributes),
            failed: false,
        });
        build.end = now;
        match &line.event {
            Event::Resolved { reference, manifest, compressed_size, .. } => {
                self.image(reference, manifest, *compressed_size, now);
            }
            Event::Planned { .. } => {
                let start = build.start;
                self.stage("resolve", start, now);
                self.planned = Some(now);
            }
            Event::LayerStarted { blob, compressed_size, images, from } => {
                self.start_layer(blob, *compressed_size, images, from.is_some(), now);
            }
            Event::LayerCommitted { blob, .. } => self.commit(blob, now),
            Event::Sealed { .. } => {
                if let Some(planned) = self.planned {
                    let committed = self.committed.unwrap_or(planned);
                    self.stage("layers", planned, committed);
                    self.stage("seal", committed, now);
                }
            }
            Event::Result(outcome) => result(build, outcome),
            _ => {}
        }
    }

    /// Returns the ID of the trace and its spans. Spans that have not ended end with the build.
    pub(super) fn finish(mut self) -> ([u8; 16], Vec<Span>) {
        let Some(build) = self.build else { return (self.trace, Vec::new()) };
        for layer in self.layers.iter_mut().filter(|layer| !layer.is_done) {
            (layer.span.end, layer.span.failed) = (build.end, build.failed);
        }
        let mut spans = vec![build];
        spans.append(&mut self.stages);
        spans.append(&mut self.images);
        spans.extend(self.layers.into_iter().map(|layer| layer.span));
        (self.trace, spans)
    }

    fn stage(&mut self, name: &'static str, start: DateTime<Utc>, end: DateTime<Utc>) {
        // A restarted builder begins its stages again.
        self.stages.retain(|stage| stage.name != name);
        self.stages.push(Span {
            id: span_id(),
            parent: Some(self.id),
            name,
            start,
            end,
            attributes: Vec::new(),
            failed: false,
        });
    }

    fn image(&mut self, reference: &str, manifest: &Digest, size: u64, now: DateTime<Utc>) {
        let is_full = self.images.len() == MAX_IMAGES || reference.len() > MAX_TEXT;
        if is_full || self.by_reference.contains_key(reference) {
            return;
        }
        self.by_reference.insert(reference.to_owned(), self.images.len());
        let start = self.build.as_ref().map_or(now, |build| build.start);
        let attributes = vec![
            ("larder.image.reference", Attribute::Text(escape(reference))),
            ("larder.image.manifest", Attribute::Text(manifest.to_string())),
            ("larder.image.compressed_size", Attribute::Number(size)),
        ];
        let parent = Some(self.id);
        let span = Span { id: span_id(), parent, name: "image", start, end: now, attributes, failed: false };
        self.images.push(span);
    }

    fn start_layer(
        &mut self,
        blob: &Digest,
        size: u64,
        images: &[String],
        is_reused: bool,
        now: DateTime<Utc>,
    ) {
        let source = Attribute::Text(if is_reused { "reused" } else { "fetched" }.to_owned());
        if let Some(known) = self.by_blob.get(blob) {
            // A copy turned out to be unusable, and the layer is fetched.
            self.layers[*known].span.attributes[0].1 = source;
            return;
        }
        if self.layers.len() == MAX_LAYERS {
            return;
        }
        let images = images.iter().take(MAX_IMAGES);
        let images: Vec<usize> = images.filter_map(|name| self.by_reference.get(name)).copied().collect();
        let parent = images.first().map_or(self.id, |first| self.images[*first].id);
        let attributes = vec![
            ("larder.layer.source", source),
            ("larder.layer.blob", Attribute::Text(blob.to_string())),
            ("larder.layer.compressed_size", Attribute::Number(size)),
        ];
        let span = Span {
            id: span_id(),
            parent: Some(parent),
            name: "layer",
            start: now,
            end: now,
            attributes,
            failed: false,
        };
        self.by_blob.insert(blob.clone(), self.layers.len());
        self.layers.push(Layer { span, images, is_done: false });
    }

    fn commit(&mut self, blob: &Digest, now: DateTime<Utc>) {
        self.committed = Some(now);
        let Some(layer) = self.by_blob.get(blob).and_then(|at| self.layers.get_mut(*at)) else { return };
        if !layer.is_done {
            (layer.span.end, layer.is_done) = (now, true);
        }
        for image in &layer.images {
            self.images[*image].end = now;
        }
    }
}

fn result(build: &mut Span, outcome: &Outcome) {
    build.failed = outcome.status == Status::Failed;
    if let Some(class) = outcome.class {
        build.attributes.push(("error.type", Attribute::Text(class.word().to_owned())));
    }
}

fn span_id() -> SpanId {
    let mut id = SpanId::default();
    id.copy_from_slice(&Uuid::new_v4().into_bytes()[..8]);
    id
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use serde_json::{Value, json};

    use super::*;

    fn line(ms: i64, event: &Value) -> Line {
        let mut line = event.clone();
        line["v"] = 1.into();
        line["time"] = json!(DateTime::UNIX_EPOCH + TimeDelta::milliseconds(ms));
        serde_json::from_value(line).unwrap()
    }

    fn digest(name: &str) -> String {
        Digest::sha256(name.as_bytes()).to_string()
    }

    #[test]
    fn each_image_and_layer_has_a_span() {
        let mut trace = BuildTrace::new([("larder.tenant", "team".to_owned())]);
        let admission = json!({"images_bytes": 1, "need": 3, "have": 4, "fits": true});
        for (ms, event) in [
            (0, json!({"event": "started", "larder": "1", "images": 2})),
            (
                10,
                json!({"event": "resolved", "reference": "a:1", "manifest": digest("m"), "platform": "linux/amd64",
                "layers": 2, "compressed_size": 7}),
            ),
            (
                20,
                json!({"event": "planned", "admission": admission, "layers": 2, "present": 0, "fetch_bytes": 7}),
            ),
            (
                30,
                json!({"event": "layer_started", "blob": digest("x"), "compressed_size": 5, "images": ["a:1"]}),
            ),
            (
                40,
                json!({"event": "layer_started", "blob": digest("y"), "compressed_size": 2, "images": ["none"],
                "from": "v"}),
            ),
            (
                50,
                json!({"event": "layer_committed", "blob": digest("x"), "chain_id": digest("c"), "size": 9,
                "entries": 1}),
            ),
            (
                70,
                json!({"event": "layer_committed", "blob": digest("y"), "chain_id": digest("d"), "size": 9,
                "entries": 1}),
            ),
            (90, json!({"event": "sealed", "digest": digest("s")})),
            (95, json!({"event": "result", "status": "ok", "exit_code": 0, "message": "", "elapsed_ms": 95})),
        ] {
            trace.take(&line(ms, &event));
        }
        let (_, spans) = trace.finish();
        let found: Vec<_> = spans
            .iter()
            .map(|span| {
                let parent = span.parent.map(|parent| spans.iter().find(|of| of.id == parent).unwrap().name);
                (span.name, parent, span.start.timestamp_millis(), span.end.timestamp_millis())
            })
            .collect();
        assert_eq!(
            found,
            [
                ("build", None, 0, 95),
                ("resolve", Some("build"), 0, 20),
                ("layers", Some("build"), 20, 70),
                ("seal", Some("build"), 70, 90),
                ("image", Some("build"), 0, 50),
                ("layer", Some("image"), 30, 50),
                ("layer", Some("build"), 40, 70),
            ]
        );
        assert_eq!(spans[0].attributes, [("larder.tenant", Attribute::Text("team".to_owned()))]);
        assert!(spans.iter().all(|span| !span.failed));
        let sources = spans[5..].iter().map(|span| span.attributes[0].1.clone());
        let want = ["fetched", "reused"].map(|source| Attribute::Text(source.to_owned()));
        assert!(sources.eq(want));
    }

    #[test]
    fn a_failure_has_its_class_and_ends_its_layers() {
        let mut trace = BuildTrace::new([]);
        let layer =
            json!({"event": "layer_started", "blob": digest("x"), "compressed_size": 5, "images": []});
        trace.take(&line(0, &json!({"event": "started", "larder": "1", "images": 1})));
        trace.take(&line(10, &layer));
        let result = json!({"event": "result", "status": "failed", "exit_code": 69, "class": "transient",
            "message": "https://user:secret@r.example.com", "elapsed_ms": 20});
        trace.take(&line(20, &result));
        let (_, spans) = trace.finish();
        assert!(spans.len() == 2 && spans.iter().all(|span| span.failed), "{spans:?}");
        assert_eq!(spans[1].end.timestamp_millis(), 20);
        assert_eq!(spans[0].attributes, [("error.type", Attribute::Text("transient".to_owned()))]);
        assert!(!format!("{spans:?}").contains("secret"));
    }

    #[test]
    fn the_number_of_spans_is_bounded() {
        let mut trace = BuildTrace::new([]);
        for number in 0..MAX_LAYERS + 10 {
            let blob = digest(&number.to_string());
            let started = json!({"event": "layer_started", "blob": blob, "compressed_size": 1, "images": []});
            trace.take(&line(0, &started));
        }
        let long = "x".repeat(MAX_TEXT + 1);
        let resolved = json!({"event": "resolved", "reference": long, "manifest": digest("m"),
            "platform": "linux/amd64", "layers": 1, "compressed_size": 1});
        trace.take(&line(0, &resolved));
        assert_eq!(trace.finish().1.len(), 1 + MAX_LAYERS);
    }
}
