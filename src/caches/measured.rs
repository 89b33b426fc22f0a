//! Metrics from the output of a builder.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::record::MAX_LAYERS;
use crate::telemetry::metrics::{ByteSource, LayerOrigin, Metrics, Stage};
use larder_model::digest::Digest;
use larder_model::event::{Event, Line};

/// The state of one builder, by its own clock.
#[derive(Debug, Default)]
pub(super) struct BuildMetrics {
    /// `true` if the layers come from an archive.
    archive: bool,
    started: Option<DateTime<Utc>>,
    planned: Option<DateTime<Utc>>,
    committed: Option<DateTime<Utc>>,
    /// Layers in progress, with their source and the size of their blob.
    layers: HashMap<Digest, (LayerOrigin, u64)>,
}

impl BuildMetrics {
    /// `archive` is `true` if the layers come from an archive instead of registries.
    pub(super) fn new(archive: bool) -> Self {
        BuildMetrics { archive, ..BuildMetrics::default() }
    }

    /// Counts a line of the builder's output.
    pub(super) fn take(&mut self, metrics: &Metrics, line: &Line) {
        let stage = |stage: Stage, from: Option<DateTime<Utc>>| {
            if let Some(took) = from.and_then(|from| (line.time - from).to_std().ok()) {
                metrics.stage(stage, took);
            }
        };
        match &line.event {
            Event::Started { .. } => self.started = Some(line.time),
            Event::Planned { .. } => {
                stage(Stage::Plan, self.started);
                self.planned = Some(line.time);
            }
            Event::LayerStarted { blob, compressed_size, from, .. } if self.layers.len() < MAX_LAYERS => {
                let origin = if from.is_some() { LayerOrigin::Reused } else { LayerOrigin::Fetched };
                self.layers.insert(blob.clone(), (origin, *compressed_size));
            }
            Event::LayerCommitted { blob, size, .. } => {
                // A layer that was already committed under another chain ID transfers no more bytes.
                let (origin, bytes) = self.layers.remove(blob).unwrap_or((LayerOrigin::Present, 0));
                metrics.layer(origin, if origin == LayerOrigin::Fetched { bytes } else { 0 }, *size);
                match origin {
                    LayerOrigin::Reused => metrics.layer_bytes(ByteSource::Reused, bytes),
                    LayerOrigin::Fetched if self.archive => metrics.layer_bytes(ByteSource::Archive, bytes),
                    // Counted by `Transferred` at the end of the build.
                    LayerOrigin::Fetched | LayerOrigin::Present => {}
                }
                self.committed = Some(line.time);
            }
            Event::LayerPresent { compressed_size, .. } => {
                metrics.layer(LayerOrigin::Present, 0, 0);
                metrics.layer_bytes(ByteSource::Present, *compressed_size);
            }
            Event::Transferred { registries, mirrors } => {
                metrics.layer_bytes(ByteSource::Registry, *registries);
                metrics.layer_bytes(ByteSource::Mirror, *mirrors);
            }
            Event::Sealed { .. } => {
                if let (Some(planned), Some(committed)) = (self.planned, self.committed)
                    && let Ok(took) = (committed - planned).to_std()
                {
                    metrics.stage(Stage::Layers, took);
                }
                stage(Stage::Seal, self.committed);
            }
            Event::RegistryAnswers { host, code, requests } => {
                metrics.registry_requests(host, *code, *requests);
            }
            // For a layer with its own URL, the event has the URL instead of a host.
            Event::Retried { host, .. } => metrics.registry_retry(host),
            Event::ConnectionReplaced { host, .. } => metrics.registry_replacement(host),
            Event::Result(outcome) => {
                for failure in &outcome.failures {
                    let explanation = failure.explanation.as_ref();
                    if let Some(host) = explanation.and_then(|explanation| explanation.host.as_deref()) {
                        metrics.registry_failure(host, failure.class);
                    }
                }
            }
            _ => {}
        }
    }
}
