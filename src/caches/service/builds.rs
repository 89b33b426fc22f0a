//! Builds: from the queue to a sealed volume or a failure.
//!
//! Invariants:
//!
//! - At most one attempt runs for an image cache. It is in `live` from before its record changes until its
//!   result is recorded, so that a deletion or cancellation reaches it.
//! - An attempt changes its record only while the record wants the volume that it fills.

mod attempt;
mod result;
mod slots;

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::result::MAX_PAUSE;
use self::slots::{Slot, Slots};
use super::admission::Admission;
use super::records::Records;
use super::settings::Settings;
use super::tasks::Tasks;
use crate::caches::error::Error;
use crate::caches::logs;
use crate::caches::progress::Progress;
use crate::caches::record::{Record, RequestOrigin};
use crate::caches::runner::Runner;
use crate::caches::store::StoreError;
use crate::caches::volumes::Volumes;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::traces::Traces;
use larder_model::image_cache::{CacheId, Spec, TenantName};
use larder_model::plan_report::PlanReport;
use larder_model::timeline::{Recorder, Timeline};
use larder_sys::clock::Clock;

/// Maximum number of timelines that are kept in memory.
const MAX_TIMELINES: usize = 64;

/// Runs builders. Clones share the same state.
#[derive(Clone, Debug)]
pub(super) struct Builds(Arc<Inner>);

/// The parts that builds use.
#[derive(Debug)]
pub(super) struct Uses {
    pub(super) records: Arc<Records>,
    pub(super) admission: Arc<Admission>,
    pub(super) settings: Arc<Settings>,
    pub(super) tasks: Tasks,
    pub(super) runner: Arc<dyn Runner>,
    pub(super) volumes: Arc<dyn Volumes>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) traces: Traces,
    /// Interval at which progress is written into the record. `None` if there are no other daemons.
    pub(super) progress_interval: Option<Duration>,
}

#[derive(Debug)]
struct Inner {
    uses: Uses,
    live: Mutex<HashMap<CacheId, Live>>,
    /// Timelines of ended attempts, oldest first, because a cluster does not store them.
    timelines: Mutex<VecDeque<(CacheId, Box<Timeline>)>>,
    /// Notified when a build has ended.
    ended: Notify,
}

/// A build in progress.
#[derive(Debug, Default)]
struct Live {
    cancel: CancellationToken,
    progress: Progress,
    recorder: Recorder,
    /// The external condition that the build waits for.
    waiting: Option<String>,
    /// `true` if another build was requested before this one ended.
    again: bool,
}

impl Builds {
    pub(super) fn new(uses: Uses) -> Self {
        Builds(Arc::new(Inner {
            uses,
            live: Mutex::default(),
            timelines: Mutex::default(),
            ended: Notify::new(),
        }))
    }

    /// Assigns the next build in the queue to each free builder, until the daemon stops.
    pub(super) async fn schedule(self, builders: usize) {
        let Uses { admission, settings, tasks, .. } = &self.0.uses;
        let slots = Slots::new(builders);
        loop {
            let next = async {
                let free = slots.free().await?;
                let may = |tenant: &TenantName| slots.allows(tenant, settings.read(|values| values.alone));
                Some((free, admission.next_build(may).await))
            };
            let next = tokio::select! {
                next = next => next,
                () = tasks.stopping() => return,
            };
            let Some((free, (tenant, id))) = next else { return };
            let slot = slots.give(free, &tenant, admission.waker());
            tasks.spawn(self.clone().build(tenant, id, slot));
        }
    }

    /// Reports what a build would fetch, without downloading layers.
    pub(super) async fn plan(
        &self,
        tenant: &TenantName,
        by: RequestOrigin,
        spec: &Spec,
    ) -> Result<PlanReport, Error> {
        let Uses { settings, runner, .. } = &self.0.uses;
        let (usable, unusable) = settings.secrets(tenant, spec, by);
        let job = settings.job(tenant, by, spec, usable, None);
        runner.plan(tenant.clone(), by, job, unusable).await.map_err(Error::Plan)
    }

    /// Stops the builder of a cache, if there is one.
    pub(super) fn interrupt(&self, id: CacheId) {
        if let Some(live) = self.live().get(&id) {
            live.cancel.cancel();
        }
    }

    /// Returns the number of builds in progress.
    pub(super) fn len(&self) -> usize {
        self.live().len()
    }

    /// Returns the caches with a build in progress.
    pub(super) fn ids(&self) -> HashSet<CacheId> {
        self.live().keys().copied().collect()
    }

    /// Returns `true` if a build of the cache is in progress.
    pub(super) fn is_building(&self, id: CacheId) -> bool {
        self.live().contains_key(&id)
    }

    /// Reads the progress of a build; `None` if there is none.
    pub(super) fn progress<T>(&self, id: CacheId, read: impl FnOnce(Option<&Progress>) -> T) -> T {
        read(self.live().get(&id).map(|live| &live.progress))
    }

    /// Returns the timeline of the build in progress, or else of the last attempt that this daemon knows.
    pub(super) fn timeline(&self, id: CacheId) -> Option<Box<Timeline>> {
        let live = self.live().get(&id).and_then(|live| live.recorder.timeline().cloned());
        let known =
            || self.timelines().iter().rev().find(|(of, _)| *of == id).map(|(_, timeline)| timeline.clone());
        live.map(Box::new).or_else(known)
    }

    /// Keeps the timeline of an attempt that ends, and returns it.
    fn keep_timeline(&self, id: CacheId) -> Option<Box<Timeline>> {
        let timeline =
            self.live().get(&id).and_then(|live| live.recorder.timeline().cloned()).map(Box::new)?;
        let mut timelines = self.timelines();
        timelines.retain(|(of, _)| *of != id);
        timelines.push_back((id, timeline.clone()));
        if timelines.len() > MAX_TIMELINES {
            timelines.pop_front();
        }
        Some(timeline)
    }

    fn timelines(&self) -> MutexGuard<'_, VecDeque<(CacheId, Box<Timeline>)>> {
        self.0.timelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a build has ended.
    pub(super) async fn ended(&self) {
        self.0.ended.notified().await;
    }

    /// Returns `true` if the stored record of a cache wants a build.
    pub(super) async fn is_wanted(&self, id: CacheId) -> Result<bool, StoreError> {
        Ok(self.0.uses.records.get(id).await?.is_some_and(|record| record.wants_build()))
    }

    /// Runs one build attempt for one cache.
    async fn build(self, tenant: TenantName, id: CacheId, slot: Slot) {
        let Some(cancel) = self.begin(id) else { return };
        // Each log line of the attempt is about this cache.
        let span = logs::span(&tenant, id, None);
        let attempt = self.attempt(&tenant, id, cancel).instrument(span.clone());
        // Contain a panic to this attempt: a cache that stays in `live` could never be deleted.
        let ended = AssertUnwindSafe(attempt).catch_unwind().await;
        let pause = span.in_scope(|| match ended {
            Ok(Ok(pause)) => pause,
            Ok(Err(error)) => {
                tracing::error!(%error, "build postponed: its record cannot be written");
                Some(MAX_PAUSE)
            }
            Err(_) => {
                tracing::error!("build postponed: the attempt panicked");
                Some(MAX_PAUSE)
            }
        });
        let again = self.live().remove(&id).is_some_and(|live| live.again);
        drop(slot);
        self.0.ended.notify_one();
        let Uses { admission, tasks, .. } = &self.0.uses;
        if again {
            return admission.enqueue(&tenant, id);
        }
        let Some(pause) = pause else { return };
        tokio::select! {
            () = tokio::time::sleep(pause) => admission.enqueue(&tenant, id),
            () = tasks.stopping() => {}
        }
    }

    /// Registers an attempt. `None` if the previous attempt is still stopping, because two would conflict;
    /// then the build is queued again when it has ended.
    fn begin(&self, id: CacheId) -> Option<CancellationToken> {
        let mut live = self.live();
        if let Some(before) = live.get_mut(&id) {
            before.again = true;
            return None;
        }
        let cancel = self.0.uses.tasks.child_token();
        live.insert(id, Live { cancel: cancel.clone(), ..Live::default() });
        Some(cancel)
    }

    /// Changes the record of an attempt, unless it no longer wants the volume `generation`. Returns `true` if
    /// it was changed.
    async fn change(
        &self,
        id: CacheId,
        generation: u32,
        mut edit: impl FnMut(&mut Record),
    ) -> Result<bool, StoreError> {
        let mut wanted = false;
        let changed = self.0.uses.records.change(id, |record| {
            wanted = record.wants_build() && record.fills(generation);
            if wanted {
                edit(record);
            }
            wanted
        });
        Ok(changed.await?.is_some() && wanted)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<CacheId, Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.uses.clock.now()
    }
}
