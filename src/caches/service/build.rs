//! One build: from the queue to a sealed volume or a failure.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use tokio::sync::mpsc;

use super::details::images;
use super::slots::{Slot, Slots};
use super::{Live, Service, state_failed};
use crate::caches::measured::BuildMetrics;
use crate::caches::record::{Content, Record};
use crate::caches::runner::{Ended, RunnerJob};
use crate::caches::store::StoreError;
use crate::caches::volumes::{BuildDirs, Sealed, VolumeId};
use crate::telemetry::metrics::BuildResult;
use larder_model::class::Class;
use larder_model::escape::escape_to;
use larder_model::event::{Event, Line, Outcome, Status as BuildStatus};
use larder_model::image_cache::{CacheId, Status, TenantName};
use larder_model::job::Source;

/// Capacity of the channel for a builder's output lines.
const LINE_CAPACITY: usize = 256;
/// Maximum pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(300);
/// Maximum length of a record's message, bytes.
const MAX_MESSAGE: usize = 4096;
/// Maximum length of a builder's text in the log, characters.
const MAX_LOGGED: usize = 1024;

impl Service {
    /// Assigns the next build in the queue to each free builder, until the daemon stops.
    pub(super) async fn schedule(self, builders: usize) {
        let slots = Slots::new(builders);
        loop {
            let free = tokio::select! {
                free = slots.free() => free,
                () = self.0.stop.cancelled() => return,
            };
            let Some(free) = free else { return };
            let (tenant, id) = loop {
                // Register for the wake-up before reading the queue, so that a push in between is not missed.
                let woken = self.0.wake.notified();
                let alone = self.settings(|settings| settings.alone);
                let next = self.queue().pop(|tenant| slots.allows(tenant, alone));
                if let Some(next) = next {
                    break next;
                }
                tokio::select! {
                    () = woken => {}
                    () = self.0.stop.cancelled() => return,
                }
            };
            let slot = slots.give(free, &tenant, Arc::clone(&self.0.wake));
            self.0.tasks.spawn(self.clone().build(tenant, id, slot));
        }
    }

    /// Runs one build attempt for one cache.
    async fn build(self, tenant: TenantName, id: CacheId, slot: Slot) {
        let cancel = self.0.stop.child_token();
        {
            let mut live = self.live();
            if let Some(before) = live.get_mut(&id) {
                // The previous attempt is still stopping; two attempts would conflict.
                before.again = true;
                return;
            }
            // Registered before the record changes, so that a delete or cancel from now on reaches this
            // attempt.
            live.insert(id, Live { cancel: cancel.clone(), ..Live::default() });
        }
        // Contain a panic to this attempt: a cache that stays in `live` could never be deleted.
        let pause = match AssertUnwindSafe(self.attempt(&tenant, id, cancel)).catch_unwind().await {
            Ok(Ok(pause)) => pause,
            Ok(Err(error)) => {
                tracing::error!(cache = %id, tenant = %tenant, %error, "build postponed: its record cannot be written");
                Some(MAX_PAUSE)
            }
            Err(_) => {
                tracing::error!(cache = %id, tenant = %tenant, "build postponed: the attempt panicked");
                Some(MAX_PAUSE)
            }
        };
        let again = self.live().remove(&id).is_some_and(|live| live.again);
        drop(slot);
        self.0.sweep.notify_one();
        if again {
            return self.enqueue(&tenant, id);
        }
        let Some(pause) = pause else { return };
        tokio::select! {
            () = tokio::time::sleep(pause) => self.enqueue(&tenant, id),
            () = self.0.stop.cancelled() => {}
        }
    }

    /// Runs a builder and records its result. Returns the pause before the next attempt, if there is one.
    async fn attempt(
        &self,
        tenant: &TenantName,
        id: CacheId,
        cancel: tokio_util::sync::CancellationToken,
    ) -> Result<Option<Duration>, StoreError> {
        let now = self.now();
        let mut begun = false;
        let record = self.change(id, |record| {
            begun = record.status != Status::Deleting && record.work.is_some();
            let Some(work) = record.work.as_mut().filter(|_| begun) else { return false };
            work.attempts += 1;
            let attempt = work.attempts;
            work.waiting = None;
            record.note_once(now, format!("attempt {attempt} began"));
            true
        });
        let Some(record) = record.await?.filter(|_| begun) else { return Ok(None) };
        let Some(work) = record.work.clone() else { return Ok(None) };
        let minutes = self.settings(|settings| settings.caches.build_timeout_minutes);
        let deadline = now + TimeDelta::minutes(i64::from(minutes));
        let (usable, unusable_secrets) = self.secrets(tenant, &record.spec, record.ordered_by);
        let volume = VolumeId { tenant: tenant.clone(), id, generation: work.generation };
        let mut job = self.job(tenant, record.ordered_by, &record.spec, usable, Some(deadline));
        let imports = record.import.and(self.0.volumes.imports());
        job.source = imports.map(|imports| Source::Received(imports.path(&id)));
        let start = Instant::now();
        let ended = match self.0.volumes.places(volume.clone()).await {
            Ok(BuildDirs { volume: path, share }) => {
                let order = RunnerJob {
                    tenant: tenant.clone(),
                    id,
                    generation: work.generation,
                    ordered_by: record.ordered_by,
                    job,
                    unusable_secrets,
                    volume: path,
                    share,
                };
                self.run(order, cancel).await
            }
            Err(e) => Ended::NotStarted(e.to_string()),
        };
        let (pause, result) = self.ended(&record, volume, work.attempts, ended).await?;
        self.0.metrics.build(result, start.elapsed());
        Ok(pause)
    }

    /// Runs the builder and handles its output.
    async fn run(&self, order: RunnerJob, cancel: tokio_util::sync::CancellationToken) -> Ended {
        let (tenant, id) = (order.tenant.clone(), order.id);
        let (sender, mut lines) = mpsc::channel(LINE_CAPACITY);
        let running = self.0.runner.build(order, sender, cancel);
        tokio::pin!(running);
        let mut open = true;
        let mut measured = BuildMetrics::default();
        let mut progress_ticks = self.0.progress_interval.map(tokio::time::interval);
        loop {
            tokio::select! {
                biased;
                line = lines.recv(), if open => match line {
                    Some(line) => self.take_up(&tenant, id, &mut measured, line),
                    None => open = false,
                },
                ended = &mut running => {
                    while let Ok(line) = lines.try_recv() {
                        self.take_up(&tenant, id, &mut measured, line);
                    }
                    return ended;
                }
                // Spawned, because a build does not wait for the store.
                () = tick(&mut progress_ticks) => drop(self.0.tasks.spawn(self.clone().write_progress(id))),
            }
        }
    }

    /// Writes the progress of a build, and the condition it waits for, into its record. Errors are only
    /// logged, because the next call writes the same.
    async fn write_progress(self, id: CacheId) {
        let live = self.live().get(&id).map(|live| (images(&live.progress), live.waiting.clone()));
        let (progress, waiting) = live.unwrap_or_default();
        let now = self.now();
        let saved = self.change(id, |record| {
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
            tracing::debug!(cache = %id, %error, "cannot write build progress");
        }
    }

    fn take_up(&self, tenant: &TenantName, id: CacheId, measured: &mut BuildMetrics, line: Line) {
        log(tenant, id, &line.event);
        measured.take(&self.0.metrics, &line);
        if let Some(live) = self.live().get_mut(&id) {
            live.progress.take(&line);
            match &line.event {
                Event::Waiting { reason } => {
                    live.waiting = reason.as_ref().map(|reason| escape_to(reason, MAX_LOGGED));
                }
                Event::Started { .. } => live.waiting = None,
                _ => {}
            }
        }
        self.0.hub.build(id, line);
    }

    /// Records how an attempt ended.
    async fn ended(
        &self,
        record: &Record,
        volume: VolumeId,
        attempts: u32,
        ended: Ended,
    ) -> Result<(Option<Duration>, BuildResult), StoreError> {
        let (id, generation) = (record.id, volume.generation);
        let exhausted = matches!(ended, Ended::Exhausted(_));
        let mut images = Vec::new();
        let (class, message) = match ended {
            Ended::Result(outcome) if outcome.status == BuildStatus::Ok => match outcome.digest.clone() {
                Some(_) => {
                    self.sealed(volume, outcome).await?;
                    return Ok((None, BuildResult::Sealed));
                }
                None => (Class::Internal, "the builder reported no digest of the sealed volume".to_owned()),
            },
            Ended::Result(outcome) | Ended::Exhausted(outcome) => {
                images.extend(outcome.failures.iter().flat_map(|failure| failure.images.clone()));
                (outcome.class.unwrap_or(Class::Internal), explain(&outcome))
            }
            // The initiator of the stop has recorded the reason.
            Ended::Stopped => {
                // The stop request can be spurious: the record might still want a build.
                let again = !self.0.stop.is_cancelled() && self.wants_builder(id).await?;
                return Ok((again.then_some(Duration::ZERO), BuildResult::Stopped));
            }
            Ended::Died(how) => (Class::Internal, how),
            Ended::NotStarted(why) => (Class::Internal, format!("cannot start the builder: {why}")),
        };
        let logged = escape_to(&message, MAX_MESSAGE);
        tracing::warn!(cache = %id, tenant = %record.tenant, ?images, ?class, attempts, "attempt failed: {logged}");
        let (retries, seconds) = self
            .settings(|settings| (settings.caches.build_retries, settings.caches.build_retry_pause_seconds));
        let heals = matches!(class, Class::Transient | Class::Internal | Class::Busy);
        if exhausted || !heals || attempts > retries {
            self.fail(id, generation, class, &message).await?;
            return Ok((None, BuildResult::Failed));
        }
        let first = Duration::from_secs(seconds);
        let pause = first.saturating_mul(1 << (attempts.clamp(1, 16) - 1)).min(MAX_PAUSE);
        let now = self.now();
        let text = format!(
            "attempt {attempts} failed, the next is in {} s: {}",
            pause.as_secs(),
            cut(&message, 512)
        );
        let mut again = false;
        self.change(id, |record| {
            // If it was cancelled or deleted while it failed, that is reported instead, and there is no
            // retry.
            again = record.status != Status::Deleting && record.fills(generation);
            if again {
                record.note(now, text.clone());
            }
            again
        })
        .await?;
        if !again {
            return Ok((None, BuildResult::Stopped));
        }
        Ok((Some(pause), BuildResult::Retried))
    }

    async fn sealed(&self, volume: VolumeId, outcome: Outcome) -> Result<(), StoreError> {
        let (id, generation) = (volume.id, volume.generation);
        let progress = self.live().get(&id).map(|live| live.progress.clone()).unwrap_or_default();
        let (layers, snapshot) = match self.0.volumes.sealed(volume).await {
            Ok(Sealed { content, snapshot }) => {
                let layers =
                    content.map_or_else(|| progress.committed_layers(), |sealed| progress.history(&sealed));
                (layers, snapshot)
            }
            Err(error) if error.class() == Class::Transient => return Err(state_failed(&error)),
            Err(error) => {
                tracing::warn!(cache = %id, %error, "cannot read the layers of a sealed volume");
                (Vec::new(), None)
            }
        };
        let now = self.now();
        let Some(digest) = outcome.digest else { return Ok(()) };
        let content = Content {
            generation,
            sealed_at: now,
            digest,
            images: outcome.images,
            totals: outcome.totals.unwrap_or_default(),
            layers,
            snapshot,
        };
        let mut event = None;
        self.change(id, |record| {
            // Deleted, cancelled or restarted in the meantime: no record needs the volume, and the sweep
            // deletes it.
            if !record.fills(generation) || record.status == Status::Deleting {
                return false;
            }
            let refreshed = record.content.is_some();
            record.content = Some(content.clone());
            record.work = None;
            record.progress.clear();
            record.message = None;
            record.class = None;
            let what = if refreshed { "refreshed" } else { "sealed" };
            record.turn(Status::Available, now, format!("{what}: {}", content.digest));
            event = Some(what);
            true
        })
        .await?;
        if let Some(what) = event {
            let bytes = content.totals.compressed_size;
            tracing::info!(cache = %id, digest = %content.digest, bytes, "{what}");
        }
        Ok(())
    }

    async fn fail(
        &self,
        id: CacheId,
        generation: u32,
        class: Class,
        message: &str,
    ) -> Result<(), StoreError> {
        let now = self.now();
        self.change(id, |record| {
            if !record.fills(generation) || record.status == Status::Deleting {
                return false;
            }
            give_up(record, now, class, message);
            true
        })
        .await?;
        Ok(())
    }
}

/// Ends the work on a record without a result. A new cache fails; a refreshed cache keeps its content.
pub(super) fn give_up(record: &mut Record, now: DateTime<Utc>, class: Class, message: &str) {
    record.work = None;
    record.progress.clear();
    record.class = Some(class);
    if record.content.is_some() {
        let message = format!("the refresh failed: {message}");
        record.message = Some(cut(&message, MAX_MESSAGE).to_owned());
        record.note(now, cut(&message, 512));
        return;
    }
    record.message = Some(cut(message, MAX_MESSAGE).to_owned());
    record.turn(Status::Failed, now, cut(message, 512));
}

/// Waits for the next tick. Never returns if there is no interval.
async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Logs the builder events that an operator needs. Their texts come from a builder, which is not trusted.
fn log(tenant: &TenantName, id: CacheId, event: &Event) {
    match event {
        Event::Resolved { reference, manifest, .. } => {
            tracing::info!(%tenant, cache = %id, image = reference, %manifest, "resolved");
        }
        Event::Waiting { reason: Some(reason) } => {
            tracing::warn!(%tenant, cache = %id, "waiting: {}", escape_to(reason, MAX_LOGGED));
        }
        Event::Warning { message } => {
            tracing::warn!(%tenant, cache = %id, "builder: {}", escape_to(message, MAX_LOGGED));
        }
        _ => {}
    }
}

/// Combines the failures of an outcome into one message that names the images.
fn explain(outcome: &Outcome) -> String {
    let mut parts = Vec::new();
    for failure in &outcome.failures {
        let unnamed: Vec<&str> = failure
            .images
            .iter()
            .map(String::as_str)
            .filter(|image| !failure.message.contains(image))
            .collect();
        let part = match unnamed.as_slice() {
            [] => failure.message.clone(),
            images => format!("{}: {}", images.join(", "), failure.message),
        };
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    let text = if parts.is_empty() { outcome.message.clone() } else { parts.join("; ") };
    cut(&text, MAX_MESSAGE).to_owned()
}

/// Returns at most `limit` bytes of a text, in whole characters.
fn cut(text: &str, limit: usize) -> &str {
    match text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= limit).last() {
        Some(end) => &text[..end],
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::event::Failure;

    #[test]
    fn a_failure_names_its_images() {
        let failure = |images: &[&str], message: &str| Failure {
            class: Class::NotFound,
            images: images.iter().map(|image| (*image).to_owned()).collect(),
            layer: None,
            message: message.to_owned(),
        };
        let outcome = Outcome {
            status: BuildStatus::Failed,
            exit_code: 64,
            message: "first".into(),
            class: Some(Class::NotFound),
            failures: vec![
                failure(&["a:1", "b:1"], "no such tag"),
                failure(&["c:1"], "c:1 is not there"),
                failure(&["c:1"], "c:1 is not there"),
            ],
            images: Vec::new(),
            digest: None,
            totals: None,
            elapsed_ms: 0,
            truncated: false,
        };
        assert_eq!(explain(&outcome), "a:1, b:1: no such tag; c:1 is not there");
        assert_eq!(explain(&Outcome { failures: Vec::new(), ..outcome }), "first");
        assert_eq!(cut("aé", 2), "a");
    }
}
