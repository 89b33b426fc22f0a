//! The agent. It runs passes, each from the observed state.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::attacher::{self, Attacher};
use super::backoff::Backoff;
use super::cluster_view::ClusterView;
use super::desired::{self, Cache, DesiredVolume};
use super::executor::{StepError, StepExecutor};
use super::notify::{Notice, Notifier};
use super::observed::{ObservedVolume, Step};
use super::readiness::State;
use super::settings::Settings;
use super::{objects, used};
use crate::telemetry::metrics::{Metrics, NodeCache};
use larder_model::class::Class;
use larder_model::image_cache::CacheId;

/// Minimum time from the end of a pass to the next: changes at the same time are handled together.
const MIN_PASS_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum time between two passes.
const MAX_PASS_INTERVAL: Duration = Duration::from_secs(60);
/// Delay after a pass that could not read its inputs.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Interval at which the Node object is checked if nothing changes.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(600);
/// Delay before a failed write of the Node object is retried.
const PUBLISH_RETRY: Duration = Duration::from_secs(5);

/// State that is kept for one volume between passes. It only saves work and may be lost.
#[derive(Debug)]
struct Memory {
    backoff: Backoff,
    /// UID of the pod from whose mount the volume was last attached or verified.
    from: Option<String>,
    /// Time since when the volume is wanted but not attached, for [`Notice::Late`] and for the metric.
    since: Instant,
    /// Time since when no pod wants it.
    unwanted: Option<Instant>,
    /// Time at which its last use was written.
    used: Option<Instant>,
}

impl Memory {
    fn new(now: Instant) -> Self {
        Memory { backoff: Backoff::default(), from: None, since: now, unwanted: None, used: None }
    }
}

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    settings: Settings,
    executor: StepExecutor,
    view: ClusterView,
    wake: Arc<Notify>,
    notifier: Notifier,
    metrics: Metrics,
    ready: Arc<AtomicBool>,
    memory: HashMap<String, Memory>,
    slots: Slots,
    /// The state that was last written to the Node object, and the time of the write.
    published: Option<(State, Instant)>,
}

/// Free slots for claims on the node, as counted by the current pass.
#[derive(Debug, Default)]
struct Slots {
    free: usize,
    /// The image caches that have a claim.
    held: HashSet<CacheId>,
}

impl Slots {
    /// Counts the slots of a node with at most `max` volumes. A claim that is being deleted occupies its
    /// slot until it is gone, because its disk does as well.
    fn of(observed_volumes: &HashMap<String, ObservedVolume>, max: usize) -> Self {
        let claims = observed_volumes.values().filter_map(|observed| observed.claim.as_deref());
        let (count, held) = claims.fold((0, HashSet::new()), |(count, mut held), claim| {
            held.extend(objects::volume_of(claim).map(|(id, _)| id));
            (count + 1, held)
        });
        Slots { free: max.saturating_sub(count), held }
    }

    /// Takes a slot for a claim, if there is one. The next volume of an image cache needs none, because the
    /// previous volume is detached as soon as the new one is attached.
    fn take(&mut self, id: CacheId) -> bool {
        let free = self.free > 0;
        self.free = self.free.saturating_sub(1);
        free || self.held.contains(&id)
    }
}

impl Agent {
    /// Creates an agent and starts its watches. Must be called inside a Tokio runtime.
    pub fn new(client: Client, settings: Settings, attacher: Arc<dyn Attacher>, metrics: Metrics) -> Self {
        let wake = Arc::new(Notify::new());
        let view = ClusterView::new(&client, &settings.node, &settings.config.namespace, &wake);
        let notifier = Notifier::new(client.clone(), &settings.node);
        let executor = StepExecutor { client: client.into(), settings: settings.clone(), attacher };
        let (ready, memory) = (Arc::default(), HashMap::new());
        let slots = Slots::default();
        Agent { settings, executor, view, wake, notifier, metrics, ready, memory, slots, published: None }
    }

    /// Returns a flag that is set after the first pass.
    pub fn readiness(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.ready)
    }

    /// Runs until `stop`. Volumes stay attached, and their containers keep running.
    pub async fn run(&mut self, stop: &CancellationToken) {
        tokio::select! {
            () = self.view.ready() => {}
            () = stop.cancelled() => return,
        }
        loop {
            let next = self.pass().await;
            let wake = Arc::clone(&self.wake);
            tokio::select! {
                () = async {
                    tokio::time::sleep(MIN_PASS_INTERVAL).await;
                    let _ = tokio::time::timeout(next.saturating_sub(MIN_PASS_INTERVAL), wake.notified()).await;
                } => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Reads the whole state and takes one step for each volume. Returns the maximum time until the next
    /// pass.
    async fn pass(&mut self) -> Duration {
        let pods = self.view.pods();
        let pods: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
        let config = &self.settings.config;
        let requests = desired::requests(&config.caches, &self.view.namespaces(), &pods);
        let claims = self.view.claims();
        let scope = desired::scope(&requests, claims.values().filter_map(|claim| objects::tenant_of(claim)));
        if !self.view.set_scope(&scope).await {
            tracing::warn!("cannot list the image caches that pods request: the API server does not answer");
            return RETRY_INTERVAL;
        }
        let caches = self.view.caches();
        let decision = desired::decide(&requests, &caches, &self.settings.node, config.max_caches);
        for (pod, why) in &decision.refused {
            self.notifier.notify(pod, Notice::Refused, why);
        }
        let attached = match self.executor.attached().await {
            Ok(attached) => attached,
            // No step is safe as long as the attached volumes are unknown.
            Err(failure) => {
                tracing::error!("cannot list the attached volumes: {}", failure.reason);
                return MAX_PASS_INTERVAL;
            }
        };
        let mut next = MAX_PASS_INTERVAL;
        let mut states: HashMap<NodeCache, usize> = HashMap::new();
        let mut desired_volumes: HashMap<&str, &DesiredVolume> =
            decision.volumes.iter().map(|desired| (desired.claim.as_str(), desired)).collect();
        let (observed_volumes, orphans) = self.observed_volumes(&attached, desired_volumes.keys().copied());
        self.slots = Slots::of(&observed_volumes, self.settings.config.max_caches);
        let kept = self.keep(&observed_volumes, &desired_volumes, &caches, &mut next);
        desired_volumes.extend(kept.iter().map(|desired| (desired.claim.as_str(), desired)));
        // Wanted volumes come first, because detaching can take long.
        let mut attached: Vec<&DesiredVolume> = Vec::new();
        let mut order: Vec<(&String, &ObservedVolume)> = observed_volumes.iter().collect();
        order.sort_by_key(|(claim, _)| (!desired_volumes.contains_key(claim.as_str()), *claim));
        for (claim, observed) in order {
            let desired = desired_volumes.get(claim.as_str()).copied();
            let (state, again) = self.advance(claim, observed, desired).await;
            next = next.min(again);
            if let Some(state) = state {
                *states.entry(state).or_default() += 1;
            }
            attached.extend(desired.filter(|_| state == Some(NodeCache::Attached)));
            if let (Some(desired), Some(NodeCache::Attached)) = (desired, state) {
                self.note_use(observed, desired);
            }
        }
        let readiness = State::of(attached.into_iter(), &self.settings.config.caches);
        next = next.min(self.publish(readiness).await);
        for name in orphans {
            let (state, again) = self.detach_orphan(&name).await;
            next = next.min(again);
            if let Some(state) = state {
                *states.entry(state).or_default() += 1;
            }
        }
        self.metrics.node_caches(|state| states.get(&state).copied().unwrap_or(0));
        self.ready.store(true, Ordering::Release);
        next
    }

    /// Writes the attached image caches to the Node object, if that is configured. Returns the maximum time
    /// until the next pass.
    async fn publish(&mut self, state: State) -> Duration {
        let is_current =
            |(written, at): &(State, Instant)| *written == state && at.elapsed() < PUBLISH_INTERVAL;
        if !self.settings.config.readiness || self.published.as_ref().is_some_and(is_current) {
            return MAX_PASS_INTERVAL;
        }
        match state.publish(&self.executor.client, &self.settings.node).await {
            Ok(()) => {
                self.published = Some((state, Instant::now()));
                MAX_PASS_INTERVAL
            }
            Err(fault) => {
                tracing::warn!("{fault}");
                PUBLISH_RETRY
            }
        }
    }

    /// Returns the observed state of each volume that is wanted or exists, and the names of attached volumes
    /// without a claim or holder.
    fn observed_volumes<'a>(
        &self,
        attached: &BTreeSet<String>,
        wanted: impl Iterator<Item = &'a str>,
    ) -> (HashMap<String, ObservedVolume>, Vec<String>) {
        let mut observed_volumes: HashMap<String, ObservedVolume> =
            wanted.map(|claim| (claim.to_owned(), ObservedVolume::default())).collect();
        for (name, claim) in self.view.claims() {
            observed_volumes.entry(name).or_default().claim = Some(claim);
        }
        for pod in self.view.holders() {
            if let Some(claim) = objects::holds(&pod) {
                observed_volumes.entry(claim.to_owned()).or_default().pods.push(pod);
            }
        }
        let mut orphans = attached.clone();
        for (claim, observed) in &mut observed_volumes {
            observed.attached = orphans.remove(&attacher::name(claim));
            observed.from = self.memory.get(claim).and_then(|memory| memory.from.clone());
        }
        (observed_volumes, orphans.into_iter().collect())
    }

    /// Returns volumes that are kept although no pod wants them: those of a cache that is being refreshed,
    /// until the new volume is attached, and those that were wanted recently, while there is room.
    fn keep(
        &mut self,
        observed_volumes: &HashMap<String, ObservedVolume>,
        desired_volumes: &HashMap<&str, &DesiredVolume>,
        caches: &[Arc<Cache>],
        next: &mut Duration,
    ) -> Vec<DesiredVolume> {
        let now = Instant::now();
        let keep_for = Duration::from_secs(60 * u64::from(self.settings.config.keep_minutes));
        let mut kept: Vec<DesiredVolume> = Vec::new();
        for (claim, observed) in observed_volumes {
            let memory = self.memory.entry(claim.clone()).or_insert_with(|| Memory::new(now));
            if desired_volumes.contains_key(claim.as_str()) {
                memory.unwanted = None;
                continue;
            }
            if !observed.attached {
                continue;
            }
            let Some((id, generation)) = observed.claim.as_deref().and_then(objects::volume_of) else {
                continue;
            };
            let Some(cache) = caches.iter().find(|cache| cache.id() == id) else { continue };
            let Some(served) = cache.served() else { continue };
            let successor = desired_volumes.values().find(|desired| desired.volume.id == id);
            let is_kept = match successor {
                Some(desired) => observed_volumes.get(&desired.claim).is_none_or(|other| !other.attached),
                None if served != generation => false,
                None => {
                    let room = desired_volumes.len() + kept.len() < self.settings.config.max_caches;
                    let since = *memory.unwanted.get_or_insert(now);
                    let left = keep_for.saturating_sub(now - since);
                    if !left.is_zero() {
                        *next = (*next).min(left);
                    }
                    room && !left.is_zero()
                }
            };
            if is_kept && let Some(desired) = cache.volume_for(generation, &self.settings.node) {
                kept.push(desired);
            }
        }
        kept
    }

    /// Takes the next step for one volume. Returns its state for the metric, and the maximum time until the
    /// next pass.
    async fn advance(
        &mut self,
        claim: &str,
        observed: &ObservedVolume,
        desired: Option<&DesiredVolume>,
    ) -> (Option<NodeCache>, Duration) {
        let now = Instant::now();
        let step = match (observed.step(desired, &self.settings.node), desired) {
            // A volume that lost its slot can still be in use: the node must not get more disks than its
            // maximum.
            (Step::MakeClaim, Some(desired)) if !self.slots.take(desired.volume.id) => {
                let max = self.settings.config.max_caches;
                Step::Wait(format!(
                    "the node has {max} image caches (node.max_caches), and one must be detached first"
                ))
            }
            (step, _) => step,
        };
        let state = match (&step, desired) {
            (Step::Gone, _) => None,
            (Step::Held, _) => Some(NodeCache::Attached),
            (_, Some(_)) => Some(NodeCache::Waiting),
            (_, None) => Some(NodeCache::Leaving),
        };
        match &step {
            Step::Gone => {
                self.memory.remove(claim);
                return (state, MAX_PASS_INTERVAL);
            }
            Step::Held => {
                if let Some(memory) = self.memory.get_mut(claim) {
                    memory.since = now;
                }
                if let Some(desired) = desired {
                    self.notify(
                        desired,
                        Notice::Attached,
                        &format!("{} is attached on this node", desired.cache()),
                    );
                }
                return (state, MAX_PASS_INTERVAL);
            }
            Step::Wait(why) => return (state, self.waits(claim, desired, why, now)),
            _ => {}
        }
        let memory = self.memory.entry(claim.to_owned()).or_insert_with(|| Memory::new(now));
        if let Some(until) = memory.backoff.until(now) {
            return (state, until - now);
        }
        let since = memory.since;
        let taken = self.executor.execute(claim, observed, desired, &step).await;
        if taken.is_ok() && matches!(step, Step::Attach { .. }) && !observed.attached {
            self.metrics.node_attached(since.elapsed());
        }
        self.note(claim, desired, &step, taken).map_or((state, MAX_PASS_INTERVAL), |again| (state, again))
    }

    /// Writes the use of an image cache in the background, if pods of the node use it and it was not written
    /// recently.
    fn note_use(&mut self, observed: &ObservedVolume, desired: &DesiredVolume) {
        let Some(memory) = self.memory.get_mut(&desired.claim) else { return };
        let lately = memory.used.is_some_and(|time| time.elapsed() < used::WRITE_INTERVAL);
        if desired.requested_by.is_empty() || lately || !used::is_due(observed.claim.as_deref(), Utc::now()) {
            return;
        }
        // A failure only costs accuracy, and must not be repeated in every pass.
        memory.used = Some(Instant::now());
        let (api, claim) = (self.executor.api(), desired.claim.clone());
        tokio::spawn(async move {
            if let Err(fault) = used::write(&api, &claim, Utc::now()).await {
                tracing::warn!(claim, "{fault}");
            }
        });
    }

    /// Records the result of a step. Returns the delay until it is retried, if it failed.
    fn note(
        &mut self,
        claim: &str,
        desired: Option<&DesiredVolume>,
        step: &Step,
        taken: Result<(), StepError>,
    ) -> Option<Duration> {
        let now = Instant::now();
        let memory = self.memory.entry(claim.to_owned()).or_insert_with(|| Memory::new(now));
        let failure = match taken {
            Ok(()) => {
                memory.backoff.succeeded();
                tracing::info!(claim, "step completed: {step:?}");
                if let Step::Attach { uid, .. } = step {
                    memory.from = Some(uid.clone());
                    self.wake.notify_one();
                } else if *step == Step::Detach {
                    memory.from = None;
                    self.wake.notify_one();
                }
                return None;
            }
            Err(failure) => failure,
        };
        memory.backoff.failed(now);
        let again = memory.backoff.until(now).map(|until| until - now);
        match failure.class {
            Class::Busy => tracing::info!(claim, "step postponed: {}", failure.reason),
            _ => {
                tracing::warn!(claim, "step failed, retrying: {}", failure.reason);
                self.metrics.node_failure();
                // Failures of the API server do not concern tenants.
                if let (Some(desired), Step::Attach { .. }) = (desired, step) {
                    let note = format!("{} cannot be attached: {}", desired.cache(), failure.reason);
                    self.notify(desired, Notice::Failed, &note);
                }
            }
        }
        again
    }

    /// Handles a step that must wait. Reports the reason if the wait has lasted too long.
    fn waits(&mut self, claim: &str, desired: Option<&DesiredVolume>, why: &str, now: Instant) -> Duration {
        let Some(desired) = desired else { return MAX_PASS_INTERVAL };
        let timeout = Duration::from_secs(60 * u64::from(self.settings.config.pending_timeout_minutes));
        let memory = self.memory.entry(claim.to_owned()).or_insert_with(|| Memory::new(now));
        let left = timeout.saturating_sub(now - memory.since);
        if left.is_zero() {
            let namespace = &self.settings.config.namespace;
            let note = format!(
                "{} is not attached yet: {why} (kubectl -n {namespace} describe pvc,pod)",
                desired.cache()
            );
            tracing::warn!(claim, "{note}");
            self.notify(desired, Notice::Late, &note);
            return MAX_PASS_INTERVAL;
        }
        left
    }

    /// Creates an event about the pods that request the volume; or about the ImageCache if there is no such
    /// pod and the event is a problem.
    fn notify(&mut self, desired: &DesiredVolume, notice: Notice, note: &str) {
        for pod in &desired.requested_by {
            self.notifier.notify(pod, notice, note);
        }
        if desired.requested_by.is_empty() && notice != Notice::Attached {
            let object = &desired.object;
            self.notifier.notify(object, notice, &format!("{}: {note}", self.settings.node));
        }
    }

    /// Detaches a volume without claim and holder, which another program deleted.
    async fn detach_orphan(&mut self, name: &str) -> (Option<NodeCache>, Duration) {
        let now = Instant::now();
        let memory = self.memory.entry(name.to_owned()).or_insert_with(|| Memory::new(now));
        let state = Some(NodeCache::Leaving);
        if let Some(until) = memory.backoff.until(now) {
            return (state, until - now);
        }
        match self.executor.detach(name.to_owned()).await {
            Ok(()) => {
                self.memory.remove(name);
                (None, MAX_PASS_INTERVAL)
            }
            failed => {
                let again = self.note(name, None, &Step::Detach, failed);
                (state, again.unwrap_or(MAX_PASS_INTERVAL))
            }
        }
    }
}
