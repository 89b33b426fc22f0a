//! Metrics from the output of a builder.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::record::MAX_LAYERS;
use crate::telemetry::metrics::{LayerOrigin, Metrics, Stage};
use larder_model::digest::Digest;
use larder_model::event::{Event, Line};

/// The state of one builder, by its own clock.
#[derive(Debug, Default)]
pub(super) struct BuildMetrics {
    started: Option<DateTime<Utc>>,
    planned: Option<DateTime<Utc>>,
    committed: Option<DateTime<Utc>>,
    /// Layers in progress, with their source and the size of their blob.
    layers: HashMap<Digest, (LayerOrigin, u64)>,
}

impl BuildMetrics {
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
                self.committed = Some(line.time);
            }
            Event::LayerPresent { .. } => metrics.layer(LayerOrigin::Present, 0, 0),
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
            Event::Retried { host, .. } => {
                // For a layer with its own URL, the event has the URL instead of a host.
                let host = host.split_once("://").map_or(host.as_str(), |(_, rest)| rest);
                metrics.registry_retry(host.split('/').next().unwrap_or_default());
            }
            _ => {}
        }
    }
}
