//! Follows the objects of the cluster: every daemon passes changes on to its HTTP clients, and the leader takes up new orders
//! and keeps the copies of snapshots as they should be.
//!
//! All of it is watched. A pass over all objects makes no request for one that is as it should be.

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
use super::fault::{Fault, ask};
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

/// First pause after an object could not be settled. It doubles each time, up to [`AGAIN`].
const SOON: Duration = Duration::from_secs(1);
/// How often all objects are looked at, whatever the watches report.
const AGAIN: Duration = Duration::from_secs(60);
/// How often copies are read that are ready as far as the watches know. Half of it at least: image caches take turns.
const COPIES_AGAIN: Duration = Duration::from_secs(6 * 3600);

/// Watches the objects of a cluster.
#[derive(Debug)]
pub struct Watch {
    /// The way to the cluster.
    pub client: ApiServer,
    /// The records.
    pub store: Arc<KubeStore>,
    /// The image caches.
    pub service: Service,
    /// Names of objects of this installation.
    pub names: Names,
    /// The namespace in which snapshots are offered to nodes. Empty if they are not.
    pub node_namespace: String,
    /// The snapshots in other namespaces.
    pub copies: Arc<Copies>,
    /// What was made for image caches.
    pub inventory: Inventory,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Creates events about image caches.
    pub(super) reporter: Reporter,
    /// Keeps image caches by themselves.
    pub(super) upkeep: Arc<Upkeep>,
}

/// What is known of the objects.
#[derive(Default)]
struct Known {
    /// The objects as they were seen last, without the parts that the store has.
    objects: HashMap<CacheId, Arc<ImageCache>>,
    /// Numbers of the last events that were passed on.
    passed_on: HashMap<CacheId, u64>,
    /// When copies are read again.
    due: HashMap<CacheId, Instant>,
    /// What was reported of each object.
    reported: HashMap<CacheId, Reported>,
    /// What namespaces accept.
    accepts: Accepts,
}

impl Watch {
    /// Watches until it is dropped.
    pub async fn run(&self) {
        let objects: Api<ImageCache> = Api::all(self.client.clone());
        // It starts again by itself after 410, an error or a dropped connection, slower each time.
        let mut events = watcher::watcher(objects, watcher::Config::default()).default_backoff().boxed();
        let mut namespaces = accepts::watch(&self.client).boxed();
        let mut changes = self.inventory.changes();
        let mut known = Known::default();
        let mut listed: HashSet<CacheId> = HashSet::new();
        let mut led = false;
        let mut pause = SOON;
        let mut look = Instant::now() + AGAIN;
        let mut tick = tokio::time::interval(SOON / 4);
        loop {
            let soon = |pause: Duration, look: Instant| look.min(Instant::now() + pause);
            let event = tokio::select! {
                event = events.next() => event,
                event = namespaces.next() => {
                    match event {
                        None => return,
                        Some(Err(error)) => tracing::warn!("watching namespaces: {error}"),
                        Some(Ok(event)) => {
                            if known.accepts.take(event) {
                                look = soon(Duration::ZERO, look);
                            }
                        }
                    }
                    continue;
                }
                changed = changes.recv() => {
                    match changed {
                        Ok(id) if !self.settle(id, &mut known).await => {
                            pause = SOON;
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
                    // The leader before may have missed some.
                    if Instant::now() >= look || leads != led {
                        led = leads;
                        let done = self.look_at_all(&mut known).await;
                        pause = if done { AGAIN } else { (pause * 2).min(AGAIN) };
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
                    self.store.know(&object);
                    let Some(id) = convert::id(&object.metadata) else { continue };
                    listed.insert(id);
                    self.upkeep.see(id, &object);
                    let object = Arc::new(slim(object));
                    known.objects.insert(id, Arc::clone(&object));
                    if !self.take_up(id, &object, &mut known).await {
                        pause = SOON;
                        look = soon(pause, look);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    // Deleted while nobody watched.
                    let mut gone: HashSet<CacheId> = self.store.complete(&listed).into_iter().collect();
                    gone.extend(known.objects.keys().filter(|id| !listed.contains(id)));
                    gone.into_iter().for_each(|id| self.gone(id, &mut known));
                    listed.clear();
                    self.upkeep.seen_all();
                }
                Some(Ok(Event::Delete(object))) => {
                    if let Some(id) = convert::id(&object.metadata) {
                        self.gone(id, &mut known);
                    }
                }
            }
        }
    }

    fn gone(&self, id: CacheId, known: &mut Known) {
        self.upkeep.forget(id);
        known.objects.remove(&id);
        known.passed_on.remove(&id);
        known.due.remove(&id);
        known.reported.remove(&id);
        if let Some(stored) = self.store.unknow(id) {
            self.service.notice_gone(&stored.record);
        }
    }

    async fn look_at_all(&self, known: &mut Known) -> bool {
        let all: Vec<(CacheId, Arc<ImageCache>)> =
            known.objects.iter().map(|(id, object)| (*id, Arc::clone(object))).collect();
        let mut done = true;
        for (id, object) in all {
            done &= self.take_up(id, &object, known).await;
        }
        done
    }

    /// Returns whether nothing is left to do for an object in this version.
    async fn take_up(&self, id: CacheId, object: &ImageCache, known: &mut Known) -> bool {
        let done = self.try_take_up(id, object, known).await;
        done.unwrap_or_else(|error| postponed(object, &error))
    }

    /// Does what a change of the objects behind an image cache asks for. Returns whether nothing is left to do.
    async fn settle(&self, id: CacheId, known: &mut Known) -> bool {
        let Some(object) = known.objects.get(&id).cloned() else { return true };
        let done = match self.store.seen(id) {
            Ok(Some(stored)) => self.settle_copies(&object, &stored.record, known).await,
            Ok(None) => return true,
            Err(error) => Err(error),
        };
        done.unwrap_or_else(|error| postponed(&object, &error))
    }

    async fn try_take_up(
        &self,
        id: CacheId,
        object: &ImageCache,
        known: &mut Known,
    ) -> Result<bool, StoreError> {
        let leads = self.service.leads();
        let deleted = object.metadata.deletion_timestamp.is_some();
        if object.status.is_none() && !deleted {
            if leads {
                let namespace = object.namespace().unwrap_or_default();
                // A namespace that no tenant can have is refused further on.
                let tenant = namespace.parse().ok();
                let (admission, now) = (self.service.admission(tenant.as_ref())?, self.clock.now());
                self.store.adopt(&namespace, &object.name_any(), admission, now).await?;
            }
            return Ok(true);
        }
        let Some(stored) = self.store.seen(id)? else {
            if leads && deleted {
                self.store.let_go(object).await?;
            }
            return Ok(true);
        };
        let record = &stored.record;
        if leads {
            self.store.observe(object, &stored).await?;
            let before = known.reported.get(&id).copied();
            let (reports, reported) = history::news(record, before, self.clock.now());
            known.reported.insert(id, reported);
            self.report(object, reports);
        } else {
            // Another daemon reports. What it has not reported when this one leads is found by its age.
            known.reported.remove(&id);
        }
        let passed_on = known.passed_on.insert(id, record.sequence).unwrap_or(0);
        self.service.notice(record, passed_on).await?;
        self.settle_copies(object, record, known).await
    }

    /// Makes the copies of an available image cache as they should be. Returns whether nothing is left to do.
    async fn settle_copies(
        &self,
        object: &ImageCache,
        record: &Record,
        known: &mut Known,
    ) -> Result<bool, StoreError> {
        if !self.service.leads() || record.status != Status::Available {
            return Ok(true);
        }
        let Some((wanted, refused)) = self.wanted(object, record, &known.accepts) else { return Ok(false) };
        let id = record.id;
        let due = *known.due.entry(id).or_insert_with(|| next_read(id));
        if Instant::now() < due && self.is_settled(object, record, &wanted, &refused) {
            return Ok(true);
        }
        let done = self.copy(object, record, &wanted, refused).await?;
        if done {
            known.due.insert(id, next_read(id));
        }
        Ok(done)
    }

    /// Whether the copies are as they should be, as far as the watches know.
    fn is_settled(
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

    /// Makes the copies that are wanted, and removes others. Returns whether all are as they should be.
    async fn copy(
        &self,
        object: &ImageCache,
        record: &Record,
        wanted: &[String],
        refused: Vec<CopyState>,
    ) -> Result<bool, StoreError> {
        let _turn = self.copies.turn().await;
        // The watch may be behind: an image cache that is being deleted gets no copies any more.
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
            self.tell(object, &states).await?;
            self.report(object, history::copies(record, before, &states));
        }
        Ok(ready)
    }

    /// The namespaces that get a copy, and those of `share` that do not accept one. `None` if it is not known yet what namespaces
    /// accept: a copy must not be removed because of that.
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
            let known = wanted.contains(share) || refused.iter().any(|state| state.namespace == *share);
            // The owner itself is in Larder's own namespace.
            if known || *share == self.names.namespace {
                continue;
            }
            if accepts.accepts(share, &record.tenant)? {
                wanted.push(share.clone());
                continue;
            }
            let message = format!(
                "the namespace does not accept image caches of {}: its administrator has to list that \
                 namespace in its annotation {ACCEPT_FROM}",
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

    async fn tell(&self, object: &ImageCache, states: &[CopyState]) -> Result<(), Fault> {
        let name = object.name_any();
        let api: Api<ImageCache> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": object.uid()}, "status": {"copies": states}});
        let doing = format!("writing the copies of the image cache {name}");
        match ask!(&doing, api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))) {
            Err(fault) if !fault.is_conflict() && !fault.is_not_found() => Err(fault),
            _ => Ok(()),
        }
    }
}

/// Without what the store keeps of it.
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

/// When copies are read again: in a half to the whole of [`COPIES_AGAIN`], so that a leader does not read all at once.
fn next_read(id: CacheId) -> Instant {
    let turn = u32::from_str_radix(&id.to_string()[..2], 16).unwrap_or(0);
    Instant::now() + COPIES_AGAIN / 2 + COPIES_AGAIN / 2 * turn / 256
}

fn postponed(object: &ImageCache, error: &StoreError) -> bool {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    tracing::warn!(namespace, name, "an image cache is looked at again later: {error}");
    false
}
