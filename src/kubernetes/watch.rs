//! What happens to the objects: every daemon tells those who watch over HTTP, and the one that leads takes up new orders and
//! keeps the copies as they are asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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
use super::fault::{Fault, ask};
use super::names::{Names, namespace};
use super::store::KubeStore;
use crate::caches::record::Record;
use crate::caches::service::Service;
use crate::caches::store::StoreError;
use crate::caches::volumes::VolumeId;
use crate::model::image_cache::{CacheId, Status};
use crate::sys::clock::Clock;

/// How often all objects are looked at again, whatever the watch tells: for copies that could not be made, and for what was
/// missed.
const AGAIN: Duration = Duration::from_secs(60);

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
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What was seen of an object last.
struct Known {
    record: Record,
    /// The copies are as the object, in this version, asks for.
    copied: Option<String>,
}

impl Watch {
    /// Watches for ever.
    pub async fn run(&self) {
        let objects: Api<ImageCache> = Api::all(self.client.clone());
        // Comes back by itself after 410, an error or a dropped connection, slower each time.
        let mut events = watcher::watcher(objects, watcher::Config::default()).default_backoff().boxed();
        let mut known: HashMap<CacheId, Known> = HashMap::new();
        let mut seen: HashMap<CacheId, ImageCache> = HashMap::new();
        let mut again = tokio::time::interval(AGAIN);
        let mut listed: Vec<CacheId> = Vec::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = again.tick() => {
                    let all: Vec<ImageCache> = seen.values().cloned().collect();
                    for object in &all {
                        self.take_up(object, &mut known).await;
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
                    if let Some(id) = convert::id(&object.metadata) {
                        listed.push(id);
                        self.take_up(&object, &mut known).await;
                        seen.insert(id, object);
                    }
                }
                Some(Ok(Event::InitDone)) => {
                    // Gone while nobody watched.
                    seen.retain(|id, _| listed.contains(id));
                    let gone: Vec<CacheId> =
                        known.keys().filter(|id| !listed.contains(id)).copied().collect();
                    for id in gone {
                        self.gone(id, &mut known);
                    }
                    listed.clear();
                }
                Some(Ok(Event::Delete(object))) => {
                    if let Some(id) = convert::id(&object.metadata) {
                        seen.remove(&id);
                        self.gone(id, &mut known);
                    }
                }
            }
        }
    }

    fn gone(&self, id: CacheId, known: &mut HashMap<CacheId, Known>) {
        if let Some(Known { record, .. }) = known.remove(&id) {
            self.service.notice_gone(&record);
        }
    }

    async fn take_up(&self, object: &ImageCache, known: &mut HashMap<CacheId, Known>) {
        if let Err(error) = self.try_take_up(object, known).await {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            tracing::warn!(namespace, name, "an image cache is looked at again later: {error}");
        }
    }

    async fn try_take_up(
        &self,
        object: &ImageCache,
        known: &mut HashMap<CacheId, Known>,
    ) -> Result<(), StoreError> {
        if object.status.is_none() {
            if self.service.leads() && object.metadata.deletion_timestamp.is_none() {
                let namespace = object.namespace().unwrap_or_default();
                let (admission, now) = (self.service.admission()?, self.clock.now());
                self.store.adopt(&namespace, &object.name_any(), admission, now).await?;
            }
            return Ok(());
        }
        let Some(stored) = self.store.read(object)? else { return Ok(()) };
        let record = stored.record;
        let (told, copied) =
            known.get(&record.id).map_or((0, None), |known| (known.record.sequence, known.copied.clone()));
        known.insert(record.id, Known { record: record.clone(), copied: copied.clone() });
        self.service.notice(&record, told).await?;
        if self.service.leads() && record.status == Status::Available && copied != object.resource_version() {
            let done = self.copy(object, &record).await?;
            if let (Some(known), true) = (known.get_mut(&record.id), done) {
                known.copied = object.resource_version();
            }
        }
        Ok(())
    }

    /// Makes the copies that are asked for, and takes back the others. Says whether all are as they shall be.
    async fn copy(&self, object: &ImageCache, record: &Record) -> Result<bool, Fault> {
        let Some(content) = &record.content else { return Ok(true) };
        let Some(snapshot) = &content.snapshot else { return Ok(true) };
        let copies = Copies::new(self.client.clone(), self.names.clone());
        let volume =
            VolumeId { tenant: record.tenant.clone(), id: record.id, generation: content.generation };
        let mut wanted = vec![namespace(&record.tenant).to_owned()];
        wanted.extend(object.spec.share.iter().cloned());
        wanted.sort();
        wanted.dedup();
        // The owner itself is there.
        wanted.retain(|namespace| *namespace != self.names.namespace);
        let mut states = Vec::with_capacity(wanted.len());
        for namespace in &wanted {
            states.push(copies.offer(&volume, snapshot, namespace).await);
        }
        copies.remove(&volume, |namespace| !wanted.iter().any(|wanted| wanted == namespace)).await?;
        let ready = states.iter().all(|state| state.ready);
        let told = object.status.as_ref().map(|status| &status.copies);
        if told != Some(&states) {
            self.tell(object, &states).await?;
        }
        Ok(ready)
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
