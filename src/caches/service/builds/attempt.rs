//! One attempt: runs a builder, and passes on its output.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::super::details::images;
use super::{Builds, Uses};
use crate::caches::logs;
use crate::caches::measured::BuildMetrics;
use crate::caches::record::{Record, Work, cut};
use crate::caches::runner::{Ended, RunnerJob};
use crate::caches::store::StoreError;
use crate::caches::volumes::{BuildDirs, VolumeId};
use larder_model::escape::escape_to;
use larder_model::event::{Event, Line};
use larder_model::image_cache::{CacheId, TenantName};
use larder_model::job::Source;

/// Capacity of the channel for a builder's output lines.
const LINE_CAPACITY: usize = 256;
/// Maximum length of a builder's text in the log, characters.
const MAX_LOGGED: usize = 1024;

impl Builds {
    /// Runs a builder and records its result. Returns the pause before the next attempt, if there is one.
    pub(super) async fn attempt(
        &self,
        tenant: &TenantName,
        id: CacheId,
        cancel: CancellationToken,
    ) -> Result<Option<Duration>, StoreError> {
        let now = self.now();
        let mut started = None;
        let mut named = None;
        let record = self.0.uses.records.change(id, |record| {
            named.get_or_insert_with(|| logs::name(&record.spec.name));
            let wanted = record.wants_build();
            started = record.work.as_mut().filter(|_| wanted).map(|work| {
                work.attempts += 1;
                work.waiting = None;
                work.clone()
            });
            if let Some(work) = &started {
                record.note_once(now, format!("attempt {} began", work.attempts));
            }
            started.is_some()
        });
        let (Some(record), Some(work)) = (record.await?, started) else { return Ok(None) };
        let volume = VolumeId { tenant: tenant.clone(), id, generation: work.generation };
        let start = Instant::now();
        let ended = match self.0.uses.volumes.places(volume.clone()).await {
            Ok(dirs) => self.run(&record, self.order(&record, &work, dirs), cancel).await,
            Err(e) => Ended::NotStarted(e.to_string()),
        };
        let (pause, result) = self.record_result(&record, volume, work.attempts, ended).await?;
        self.0.uses.metrics.build(result, start.elapsed());
        Ok(pause)
    }

    /// Returns the order for the builder of an attempt that starts now.
    fn order(&self, record: &Record, work: &Work, dirs: BuildDirs) -> RunnerJob {
        let Uses { settings, volumes, .. } = &self.0.uses;
        let minutes = settings.read(|values| values.caches.build_timeout_minutes);
        let deadline = self.now() + TimeDelta::minutes(i64::from(minutes));
        let (tenant, by) = (&record.tenant, record.ordered_by);
        let (usable, unusable_secrets) = settings.secrets(tenant, &record.spec, by);
        let mut job = settings.job(tenant, by, &record.spec, usable, Some(deadline));
        let imports = record.import.and(volumes.imports());
        job.source = imports.map(|imports| Source::Received(imports.path(&record.id)));
        RunnerJob {
            tenant: tenant.clone(),
            id: record.id,
            generation: work.generation,
            ordered_by: by,
            job,
            unusable_secrets,
            volume: dirs.volume,
            share: dirs.share,
        }
    }

    /// Runs the builder and handles its output.
    async fn run(&self, record: &Record, order: RunnerJob, cancel: CancellationToken) -> Ended {
        let id = order.id;
        let mut trace = self.0.uses.traces.begin([
            ("larder.tenant", record.tenant.to_string()),
            ("larder.cache.id", id.to_string()),
            ("larder.cache.name", record.spec.name.to_string()),
        ]);
        let (sender, mut lines) = mpsc::channel(LINE_CAPACITY);
        let mut open = true;
        let mut measured = BuildMetrics::new(order.job.source.is_some());
        let running = self.0.uses.runner.build(order, sender, cancel);
        tokio::pin!(running);
        let mut progress_ticks = self.0.uses.progress_interval.map(tokio::time::interval);
        let mut handle = |line: Line| {
            if let Some(trace) = &mut trace {
                trace.take(&line);
            }
            self.handle_line(id, &mut measured, line);
        };
        let ended = loop {
            tokio::select! {
                biased;
                line = lines.recv(), if open => match line {
                    Some(line) => handle(line),
                    None => open = false,
                },
                ended = &mut running => {
                    while let Ok(line) = lines.try_recv() {
                        handle(line);
                    }
                    break ended;
                }
                // Spawned, because a build does not wait for the store.
                () = tick(&mut progress_ticks) => {
                    self.0.uses.tasks.spawn(self.clone().write_progress(id).in_current_span());
                }
            }
        };
        if let Some(trace) = trace {
            self.0.uses.traces.send(trace);
        }
        ended
    }

    /// Writes the progress of a build, and the condition it waits for, into its record. Errors are only
    /// logged, because the next call writes the same.
    async fn write_progress(self, id: CacheId) {
        let live = self.live().get(&id).map(|live| (images(&live.progress), live.waiting.clone()));
        let (progress, waiting) = live.unwrap_or_default();
        let now = self.now();
        let saved = self.0.uses.records.change(id, |record| {
            let Some(work) = &mut record.work else { return false };
            let waits = work.waiting != waiting;
            let news = waits || record.progress != progress;
            record.progress.clone_from(&progress);
            if waits {
                work.waiting.clone_from(&waiting);
                if let Some(reason) = &waiting {
                    record.note_once(now, format!("waiting: {}", cut(reason, 512)));
                }
            }
            news
        });
        if let Err(error) = saved.await {
            tracing::debug!(%error, "cannot write build progress");
        }
    }

    fn handle_line(&self, id: CacheId, measured: &mut BuildMetrics, line: Line) {
        log(&line.event);
        measured.take(&self.0.uses.metrics, &line);
        if let Some(live) = self.live().get_mut(&id) {
            live.progress.take(&line);
            live.recorder.take(&line);
            match &line.event {
                Event::Waiting { reason } => {
                    live.waiting = reason.as_ref().map(|reason| escape_to(reason, MAX_LOGGED));
                }
                Event::Started { .. } => live.waiting = None,
                _ => {}
            }
        }
        self.0.uses.records.publish_line(id, line);
    }
}

/// Waits for the next tick. Never returns if there is no interval.
async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Logs the builder events that an operator needs. Their texts come from a builder, which is not trusted.
fn log(event: &Event) {
    match event {
        Event::Resolved { reference, manifest, .. } => {
            tracing::info!(image = reference, %manifest, "resolved");
        }
        Event::Waiting { reason: Some(reason) } => {
            tracing::warn!("waiting: {}", escape_to(reason, MAX_LOGGED));
        }
        Event::Warning { message } => {
            tracing::warn!("builder: {}", escape_to(message, MAX_LOGGED));
        }
        _ => {}
    }
}
