//! What a builder says, as metrics.

use chrono::{DateTime, Utc};

use crate::model::event::{Event, Line};
use crate::telemetry::metrics::{LayerOrigin, Metrics, Stage};

/// Where one builder is, by its own clock.
#[derive(Debug, Default)]
pub(super) struct Measured {
    started: Option<DateTime<Utc>>,
    planned: Option<DateTime<Utc>>,
    committed: Option<DateTime<Utc>>,
}

impl Measured {
    /// Counts what the builder said.
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
            Event::LayerCommitted { size, .. } => {
                metrics.layer(LayerOrigin::Fetched, 0, *size);
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
            Event::Retried { host, .. } => metrics.registry_retry(host),
            _ => {}
        }
    }
}
