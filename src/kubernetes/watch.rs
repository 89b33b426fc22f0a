//! Follows the objects of the cluster. Every daemon forwards changes to its HTTP clients. The leader also
//! adopts new objects and keeps the copies of snapshots up to date.
//!
//! All state comes from watches. A pass over all objects sends no request for an object that is up to date.

mod accepts;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;

use self::accepts::Accepts;
use super::client::ApiServer;
use super::convert;
use super::copies::Copies;
use super::crd::{CopyState, ImageCache};
use super::events::{Report, Reporter};
use super::fault::{Fault, request};
use super::history::{self, Reported};
use super::inventory::Inventory;
use super::names::{self, ACCEPT_FROM, Names, namespace};
use super::store::KubeStore;
use super::upkeep::Upkeep;
use crate::caches::record::Record;
use crate::caches::service::Service;
use crate::caches::store::{Store as _, StoreError};
use crate::caches::volumes::VolumeId;
use larder_model::image_cache::{CacheId, Status};
use larder_sys::clock::Clock;

/// Delay after an object could not be processed. It doubles each time, up to [`RESYNC_INTERVAL`].
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Interval between two passes over all objects, independent of the watches.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum interval between two reads of copies that are ready according to the watches. Image caches are
/// spread over the second half of it.
const COPIES_RESYNC: Duration = Duration::from_secs(6 * 3600);

/// Watches the objects of a cluster.
#[derive(Debug)]
pub struct Watch {
    /// Client for the cluster.
    pub client: ApiServer,
    /// The records of image caches.
    pub store: Arc<KubeStore>,
    /// The service that manages image caches.
    pub service: Service,
    /// Names of the objects of this installation.
    pub names: Names,
    /// Namespace in which snapshots are offered to nodes. Empty if no nodes have agents.
    pub node_namespace: String,
    /// Copies of snapshots in other namespaces.
    pub copies: Arc<Copies>,
    /// The objects that were made for image caches.
    pub inventory: Inventory,
    /// Clock for admission and for the age of events.
    pub clock: Arc<dyn Clock>,
    /// Creates events about image caches.
    pub(super) reporter: Reporter,
    /// Refreshes, evicts and creates image caches automatically.
    pub(super) upkeep: Arc<Upkeep>,
}

/// State of the watch, by image cache.
#[derive(Default)]
struct State {
    /// The objects as last seen, without the parts that the store keeps.
    objects: HashMap<CacheId, Arc<ImageCache>>,
    /// Number of the last event that was forwarded.
    passed_on: HashMap<CacheId, u64>,
    /// Time of the next read of the copies.
    due: HashMap<CacheId, Instant>,
    /// Events that were already reported.
    reported: HashMap<CacheId, Reported>,
    /// Namespaces and the tenants that they accept.
    accepts: Accepts,
}

impl Watch {
    /// Watches until the future is dropped.
    pub async fn run(&self) {
        let objects: Api<ImageCache> = Api::all(self.client.clone());
        // The watcher restarts after 410, an error or a dropped connection, with growing pauses.
        let mut events = watcher::watcher(objects, watcher::Config::default()).default_backoff().boxed();
        let mut namespaces = accepts::watch(&self.client).boxed();
        let mut changes = self.inventory.changes();
        let mut state = State::default();
        let mut listed: HashSet<CacheId> = HashSet::new();
        let mut led = false;
        let mut pause = FIRST_DELAY;
        let mut look = Instant::now() + RESYNC_INTERVAL;
        let mut tick = tokio::time::interval(FIRST_DELAY / 4);
        loop {
            let soon = |pause: Duration, look: Instant| look.min(Instant::now() + pause);
            let event = tokio::select! {
                event = events.next() => event,
                event = namespaces.next() => {
                    match event {
                        None => return,
                        Some(Err(error)) => tracing::warn!("watching namespaces: {error}"),
                        Some(Ok(event)) => {
                            if state.accepts.apply(event) {
                                look = soon(Duration::ZERO, look);
                            }
                        }
                    }
                    continue;
                }
                changed = changes.recv() => {
                    match changed {
                        Ok(id) if !self.reconcile(id, &mut state).await => {
                            pause = FIRST_DELAY;
                            look = soon(pause, look);
                        }
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => look = soon(Duration::ZERO, look),
                        Err(RecvError::Closed) => return,
                    }
                    continue;
                }
                _ = tick.tick() => {
                    let leads = self.service.leads();
                    // The previous leader may have missed some changes.
                    if Instant::now() >= look || leads != led {
                        led = leads;
                        let done = self.process_all(&mut state).await;
                        pause = if done { RESYNC_INTERVAL } else { (pause * 2).min(RESYNC_INTERVAL) };
                        look = Instant::now() + pause;
                    }
                    continue;
                }
            };
            match event {
                None => return,
                Some(Err(error)) => tracing::warn!("watching image caches: {error}"),
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object) | Event::Apply(object))) => {
                    self.store.index(&object);
                    let Some(id) = convert::id(&object.metadata) else { continue };
                    listed.insert(id);
                    self.upkeep.see(id, &object);
                    let object = Arc::new(slim(object));
                    state.objects.insert(id, Arc::clone(&object));
                    if !self.process(id, &object, &mut state).await {
                        pause = FIRST_DELAY;
                        look = soon(pause, look);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    // Deleted while the watch was interrupted.
                    let mut gone: HashSet<CacheId> = self.store.complete(&listed).into_iter().collect();
                    gone.extend(state.objects.keys().filter(|id| !listed.contains(id)));
                    gone.into_iter().for_each(|id| self.gone(id, &mut state));
                    listed.clear();
                    self.upkeep.seen_all();
                }
                Some(Ok(Event::Delete(object))) => {
                    if let Some(id) = convert::id(&object.metadata) {
                        self.gone(id, &mut state);
                    }
                }
            }
        }
    }

    fn gone(&self, id: CacheId, state: &mut State) {
        self.upkeep.forget(id);
        state.objects.remove(&id);
        state.passed_on.remove(&id);
        state.due.remove(&id);
        state.reported.remove(&id);
        if let Some(stored) = self.store.unindex(id) {
            self.service.notice_gone(&stored.record);
        }
    }

    async fn process_all(&self, state: &mut State) -> bool {
        let all: Vec<(CacheId, Arc<ImageCache>)> =
            state.objects.iter().map(|(id, object)| (*id, Arc::clone(object))).collect();
        let mut done = true;
        for (id, object) in all {
            done &= self.process(id, &object, state).await;
        }
        done
    }

    /// Processes an object. Returns whether nothing is left to do for this version.
    async fn process(&self, id: CacheId, object: &ImageCache, state: &mut State) -> bool {
        let done = self.try_process(id, object, state).await;
        done.unwrap_or_else(|error| log_failure(object, &error))
    }

    /// Reacts to a change of the objects behind an image cache. Returns whether nothing is left to do.
    async fn reconcile(&self, id: CacheId, state: &mut State) -> bool {
        let Some(object) = state.objects.get(&id).cloned() else { return true };
        let done = match self.store.seen(id) {
            Ok(Some(stored)) => self.reconcile_copies(&object, &stored.record, state).await,
            Ok(None) => return true,
            Err(error) => Err(error),
        };
        done.unwrap_or_else(|error| log_failure(&object, &error))
    }

    async fn try_process(
        &self,
        id: CacheId,
        object: &ImageCache,
        state: &mut State,
    ) -> Result<bool, StoreError> {
        let leads = self.service.leads();
        let deleted = object.metadata.deletion_timestamp.is_some();
        if object.status.is_none() && !deleted {
            if leads {
                let namespace = object.namespace().unwrap_or_default();
                // `adopt` refuses a namespace that cannot be a tenant's.
                let tenant = namespace.parse().ok();
                let (limits, now) = (self.service.limits(tenant.as_ref())?, self.clock.now());
                self.store.adopt(&namespace, &object.name_any(), limits, now).await?;
            }
            return Ok(true);
        }
        let Some(stored) = self.store.seen(id)? else {
            if leads && deleted {
                self.store.finalize(object).await?;
            }
            return Ok(true);
        };
        let record = &stored.record;
        if leads {
            self.store.observe(object, &stored).await?;
            let before = state.reported.get(&id).copied();
            let (reports, reported) = history::news(record, before, self.clock.now());
            state.reported.insert(id, reported);
            self.report(object, reports);
        } else {
            // Another daemon reports. When this one becomes the leader, it selects unreported events by their
            // age.
            state.reported.remove(&id);
        }
        let passed_on = state.passed_on.insert(id, record.sequence).unwrap_or(0);
        self.service.notice(record, passed_on).await?;
        self.reconcile_copies(object, record, state).await
    }

    /// Brings the copies of an available image cache up to date. Returns whether nothing is left to do.
    async fn reconcile_copies(
        &self,
        object: &ImageCache,
        record: &Record,
        state: &mut State,
    ) -> Result<bool, StoreError> {
        if !self.service.leads() || record.status != Status::Available {
            return Ok(true);
        }
        let Some((wanted, refused)) = self.wanted(object, record, &state.accepts) else { return Ok(false) };
        let id = record.id;
        let due = *state.due.entry(id).or_insert_with(|| next_read(id));
        if Instant::now() < due && self.copies_match(object, record, &wanted, &refused) {
            return Ok(true);
        }
        let done = self.copy(object, record, &wanted, refused).await?;
        if done {
            state.due.insert(id, next_read(id));
        }
        Ok(done)
    }

    /// Reports whether the copies are up to date according to the watches.
    fn copies_match(
        &self,
        object: &ImageCache,
        record: &Record,
        wanted: &[String],
        refused: &[CopyState],
    ) -> bool {
        let Some(content) = &record.content else { return true };
        let volume =
            VolumeId { tenant: record.tenant.clone(), id: record.id, generation: content.generation };
        let copies = self.inventory.copies(&volume);
        let all_ready = wanted.iter().all(|namespace| {
            let name = names::copy(&volume, namespace);
            copies.iter().any(|copy| copy.content == name && copy.namespace == *namespace && copy.ready)
        });
        let ready = wanted.iter().map(|namespace| CopyState {
            namespace: namespace.clone(),
            ready: true,
            message: None,
        });
        let mut states: Vec<CopyState> = ready.chain(refused.iter().cloned()).collect();
        states.sort_by(|one, other| one.namespace.cmp(&other.namespace));
        self.inventory.is_complete()
            && all_ready
            && copies.len() == wanted.len()
            && object.status.as_ref().is_some_and(|status| status.copies == states)
    }

    /// Creates the wanted copies and deletes the others. Returns whether all of them are ready.
    async fn copy(
        &self,
        object: &ImageCache,
        record: &Record,
        wanted: &[String],
        refused: Vec<CopyState>,
    ) -> Result<bool, StoreError> {
        let _turn = self.copies.turn().await;
        // The watch can lag behind: an image cache that is being deleted must get no more copies.
        let Some(stored) = self.store.get(record.id).await? else { return Ok(true) };
        let record = &stored.record;
        let Some(content) = record.content.as_ref().filter(|_| record.status == Status::Available) else {
            return Ok(true);
        };
        let Some(snapshot) = &content.snapshot else { return Ok(true) };
        let volume =
            VolumeId { tenant: record.tenant.clone(), id: record.id, generation: content.generation };
        let mut states = refused;
        for namespace in wanted {
            states.push(self.copies.offer(&volume, snapshot, namespace).await);
        }
        states.sort_by(|one, other| one.namespace.cmp(&other.namespace));
        self.copies.remove(&volume, |namespace| !wanted.iter().any(|wanted| wanted == namespace)).await?;
        let ready = wanted
            .iter()
            .all(|namespace| states.iter().any(|state| state.namespace == *namespace && state.ready));
        let before = object.status.as_ref().map(|status| status.copies.as_slice()).unwrap_or_default();
        if before != states {
            self.write_copies(object, &states).await?;
            self.report(object, history::copies(record, before, &states));
        }
        Ok(ready)
    }

    /// Returns the namespaces that get a copy, and those of `share` that do not accept one. `None` if the
    /// annotations of namespaces are not known yet: copies must not be removed then.
    fn wanted(
        &self,
        object: &ImageCache,
        record: &Record,
        accepts: &Accepts,
    ) -> Option<(Vec<String>, Vec<CopyState>)> {
        let mut wanted = vec![namespace(&record.tenant).to_owned()];
        wanted.extend(Some(self.node_namespace.clone()).filter(|namespace| !namespace.is_empty()));
        let mut refused: Vec<CopyState> = Vec::new();
        for share in &object.spec.share {
            let listed = wanted.contains(share) || refused.iter().any(|state| state.namespace == *share);
            // The VolumeSnapshot that owns the storage is already in Larder's own namespace.
            if listed || *share == self.names.namespace {
                continue;
            }
            if accepts.accepts(share, &record.tenant)? {
                wanted.push(share.clone());
                continue;
            }
            let message = format!(
                "the namespace does not accept image caches of {}: its administrator must add that \
                 namespace to its annotation {ACCEPT_FROM}",
                record.tenant
            );
            refused.push(CopyState { namespace: share.clone(), ready: false, message: Some(message) });
        }
        wanted.retain(|namespace| *namespace != self.names.namespace);
        wanted.sort();
        Some((wanted, refused))
    }

    fn report(&self, object: &ImageCache, reports: Vec<Report>) {
        let about = history::reference(object);
        reports.into_iter().for_each(|report| self.reporter.report(&about, report));
    }

    async fn write_copies(&self, object: &ImageCache, states: &[CopyState]) -> Result<(), Fault> {
        let name = object.name_any();
        let api: Api<ImageCache> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": object.uid()}, "status": {"copies": states}});
        let doing = format!("writing the copies of the image cache {name}");
        match request!(&doing, api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))) {
            Err(fault) if !fault.is_conflict() && !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }
}

/// Removes the parts of an object that the store keeps.
fn slim(mut object: ImageCache) -> ImageCache {
    object.metadata.managed_fields = None;
    if let Some(status) = &mut object.status {
        status.content = None;
        status.progress = None;
        status.events = Vec::new();
        status.images = Vec::new();
        status.conditions = Vec::new();
    }
    object
}

/// Returns the time of the next read of the copies: after half to all of [`COPIES_RESYNC`], derived from the
/// ID, so that a leader does not read all copies at once.
fn next_read(id: CacheId) -> Instant {
    let turn = u32::from_str_radix(&id.to_string()[..2], 16).unwrap_or(0);
    Instant::now() + COPIES_RESYNC / 2 + COPIES_RESYNC / 2 * turn / 256
}

fn log_failure(object: &ImageCache, error: &StoreError) -> bool {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(namespace, name, "processing an image cache failed, retrying: {error}");
    false
}
