//! What happens to the objects: every daemon tells those who watch over HTTP, and the one that leads takes up new orders and
//! keeps the copies as they are asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::json;

use super::client::ApiServer;
use super::convert;
use super::copies::Copies;
use super::crd::{CopyState, ImageCache};
use super::events::{Report, Reporter};
use super::fault::{Fault, ask};
use super::history::{self, Reported};
use super::names::{ACCEPT_FROM, Names, namespace};
use super::store::KubeStore;
use crate::caches::record::Record;
use crate::caches::service::Service;
use crate::caches::store::{Store as _, StoreError};
use crate::caches::volumes::VolumeId;
use crate::model::image_cache::{CacheId, Status};
use crate::sys::clock::Clock;

/// How long after an object could not be brought in order it is looked at again; doubles each time, up to the other.
const SOON: Duration = Duration::from_secs(1);
/// How often all objects are looked at again, whatever the watch tells.
const AGAIN: Duration = Duration::from_secs(60);
/// How often copies that were ready are looked at again: whoever may delete them in their namespace may have.
const COPIES_AGAIN: Duration = Duration::from_secs(600);

/// Watches the objects of a cluster.
#[derive(Debug)]
pub struct Watch {
    /// The way to the cluster.
    pub client: ApiServer,
    /// The records.
    pub store: Arc<KubeStore>,
    /// The image caches.
    pub service: Service,
    /// Whose objects.
    pub names: Names,
    /// Where snapshots are offered to nodes; empty is nowhere.
    pub node_namespace: String,
    /// The snapshots in other namespaces.
    pub copies: Arc<Copies>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Creates events about image caches.
    pub(super) reporter: Reporter,
}

/// What is known of the objects.
#[derive(Default)]
struct Known {
    /// As they were seen last.
    objects: HashMap<CacheId, ImageCache>,
    /// The records that were told of.
    records: HashMap<CacheId, Record>,
    /// The versions whose copies are as they ask for, and when that was seen.
    copied: HashMap<CacheId, (Option<String>, Instant)>,
    /// What was reported of each.
    reported: HashMap<CacheId, Reported>,
}

impl Watch {
    /// Watches for ever.
    pub async fn run(&self) {
        let objects: Api<ImageCache> = Api::all(self.client.clone());
        // Comes back by itself after 410, an error or a dropped connection, slower each time.
        let mut events = watcher::watcher(objects, watcher::Config::default()).default_backoff().boxed();
        let mut known = Known::default();
        let mut listed: Vec<CacheId> = Vec::new();
        let mut led = false;
        let mut pause = SOON;
        let mut look = Instant::now() + AGAIN;
        let mut tick = tokio::time::interval(SOON / 4);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = tick.tick() => {
                    let leads = self.service.leads();
                    // Whoever led before may not have come to all.
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
                    listed.push(id);
                    if !self.take_up(id, &object, &mut known).await {
                        pause = SOON;
                        look = look.min(Instant::now() + pause);
                    }
                    known.objects.insert(id, object);
                }
                Some(Ok(Event::InitDone)) => {
                    // Gone while nobody watched.
                    let gone: Vec<CacheId> =
                        known.objects.keys().filter(|id| !listed.contains(id)).copied().collect();
                    gone.into_iter().for_each(|id| self.gone(id, &mut known));
                    listed.clear();
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
        known.objects.remove(&id);
        known.copied.remove(&id);
        known.reported.remove(&id);
        if let Some(record) = known.records.remove(&id) {
            self.service.notice_gone(&record);
        }
    }

    async fn look_at_all(&self, known: &mut Known) -> bool {
        let all: Vec<(CacheId, ImageCache)> =
            known.objects.iter().map(|(id, object)| (*id, object.clone())).collect();
        let mut done = true;
        for (id, object) in all {
            done &= self.take_up(id, &object, known).await;
        }
        done
    }

    /// Says whether nothing is left to do for an object in this version.
    async fn take_up(&self, id: CacheId, object: &ImageCache, known: &mut Known) -> bool {
        match self.try_take_up(id, object, known).await {
            Ok(done) => done,
            Err(error) => {
                let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
                tracing::warn!(namespace, name, "an image cache is looked at again later: {error}");
                false
            }
        }
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
        let Some(stored) = self.store.read(object)? else {
            if leads && deleted {
                self.store.let_go(object).await?;
            }
            return Ok(true);
        };
        let record = stored.record.clone();
        if leads {
            self.store.observe(object, &stored).await?;
            let before = known.reported.get(&id).copied();
            let (reports, reported) = history::news(&record, before, self.clock.now());
            known.reported.insert(id, reported);
            self.report(object, reports);
        } else {
            // Another daemon reports. What it has not reported when this one leads is found by its age.
            known.reported.remove(&id);
        }
        let told = known.records.get(&id).map_or(0, |record| record.sequence);
        known.records.insert(id, record.clone());
        self.service.notice(&record, told).await?;
        let version = object.resource_version();
        let copied = known
            .copied
            .get(&id)
            .is_some_and(|(copied, seen)| *copied == version && seen.elapsed() < COPIES_AGAIN);
        if !leads || record.status != Status::Available || copied {
            return Ok(true);
        }
        let done = self.copy(object, &record).await?;
        if done {
            known.copied.insert(id, (version, Instant::now()));
        }
        Ok(done)
    }

    /// Makes the copies that are asked for, and takes back the others. Says whether all are as they shall be.
    async fn copy(&self, object: &ImageCache, record: &Record) -> Result<bool, StoreError> {
        let _turn = self.copies.turn().await;
        // What was heard of may be over: of what goes there are no copies any more.
        let Some(stored) = self.store.get(record.id).await? else { return Ok(true) };
        let record = &stored.record;
        let Some(content) = record.content.as_ref().filter(|_| record.status == Status::Available) else {
            return Ok(true);
        };
        let Some(snapshot) = &content.snapshot else { return Ok(true) };
        let volume =
            VolumeId { tenant: record.tenant.clone(), id: record.id, generation: content.generation };
        let (wanted, mut states) = self.wanted(object, record).await?;
        for namespace in &wanted {
            states.push(self.copies.offer(&volume, snapshot, namespace).await);
        }
        states.sort_by(|one, other| one.namespace.cmp(&other.namespace));
        self.copies.remove(&volume, |namespace| !wanted.iter().any(|wanted| wanted == namespace)).await?;
        let ready = states.iter().all(|state| state.ready);
        let before = object.status.as_ref().map(|status| status.copies.as_slice()).unwrap_or_default();
        if before != states {
            self.tell(object, &states).await?;
            self.report(object, history::copies(record, before, &states));
        }
        Ok(ready)
    }

    /// The namespaces that get a copy, and those of `share` that do not accept one.
    ///
    /// # Errors
    /// A request failed and may succeed later: a copy must not be taken back because of that.
    async fn wanted(
        &self,
        object: &ImageCache,
        record: &Record,
    ) -> Result<(Vec<String>, Vec<CopyState>), Fault> {
        let mut wanted = vec![namespace(&record.tenant).to_owned()];
        wanted.extend(Some(self.node_namespace.clone()).filter(|namespace| !namespace.is_empty()));
        let mut refused: Vec<CopyState> = Vec::new();
        for share in &object.spec.share {
            let known = wanted.contains(share) || refused.iter().any(|state| state.namespace == *share);
            // The owner itself is in Larder's own namespace.
            if known || *share == self.names.namespace {
                continue;
            }
            let message = match self.copies.accepts(share, &record.tenant).await {
                Ok(true) => {
                    wanted.push(share.clone());
                    continue;
                }
                Ok(false) => format!(
                    "the namespace does not accept image caches of {}: its administrator has to list that \
                     namespace in its annotation {ACCEPT_FROM}",
                    record.tenant
                ),
                Err(fault) if fault.is_transient() => return Err(fault),
                Err(fault) => fault.to_string().chars().take(1000).collect(),
            };
            refused.push(CopyState { namespace: share.clone(), ready: false, message: Some(message) });
        }
        wanted.retain(|namespace| *namespace != self.names.namespace);
        wanted.sort();
        Ok((wanted, refused))
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
