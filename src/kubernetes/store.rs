//! Stores records as custom resources.
//!
//! Compare-and-swap is a PUT of the status with the resourceVersion that was read. A create is a POST of the
//! spec, whose name the API server accepts only once, followed by a PUT of the status. Conditions over
//! several objects (quota, capacity, one record for each Idempotency-Key) are checked and written by one
//! daemon at a time, under a short Lease. A ResourceQuota is enforced independently of that.

mod adopt;
mod create;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use self::keys::Keys;
use super::client::ApiServer;
use super::convert::{self, Read};
use super::crd::ImageCache;
use super::fault::{Fault, opt, request};
use super::lease::Lease;
use super::names::{FINALIZER, MANAGER, namespace};
use super::seen::{ObjectName, Seen, SeenStatus};
use crate::caches::record::Record;
use crate::caches::store::{Admission, Created, IdempotencyKey, Store, StoreError, Stored};
use larder_model::image_cache::{CacheId, Status, TenantName};
use larder_sys::clock::guard::SavedClock;

/// Duration of the admission lease: another daemon can acquire it this long after its holder stopped.
const ADMISSION_LEASE: Duration = Duration::from_secs(10);
/// Interval between attempts to acquire the admission lease.
const ADMISSION_POLL: Duration = Duration::from_millis(50);
/// Name of the ConfigMap that contains the last saved clock readings.
const CLOCK_CONFIGMAP: &str = "larder-clock";
/// Maximum number of objects in one response to a list request.
const PAGE_SIZE: u32 = 500;

/// Time after a create in which the annotations of its object replace the idempotency key, in case the key
/// was not stored.
const REPAIR_WINDOW: TimeDelta = TimeDelta::hours(1);

/// Maximum time that a survey waits for the watch to see all objects. After that it lists them, which takes
/// much memory.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Minimum interval between two lists of the cluster's objects for UIDs that the watch has not seen.
const MIN_LIST_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps records in the cluster's own store.
#[derive(Debug)]
pub struct KubeStore {
    client: ApiServer,
    /// UID of the cluster.
    cluster: String,
    keys: Keys,
    clock: Api<ConfigMap>,
    admission: Lease,
    /// Serialises creates in this process. The lease serialises them between processes.
    turn: tokio::sync::Mutex<()>,
    seen: Seen,
    /// Time of the last list of all objects for a UID that the watch had not seen.
    listed: tokio::sync::Mutex<Option<Instant>>,
}

impl KubeStore {
    /// Returns the store of the cluster `cluster`. `own` is Larder's own namespace. `identity` identifies
    /// this process.
    pub fn new(client: Client, cluster: &str, own: &str, identity: &str) -> Self {
        KubeStore {
            cluster: cluster.to_owned(),
            keys: Keys::new(client.clone(), own),
            clock: Api::namespaced(client.clone(), own),
            admission: Lease::new(client.clone(), own, "larder-admission", identity, ADMISSION_LEASE),
            turn: tokio::sync::Mutex::default(),
            seen: Seen::default(),
            listed: tokio::sync::Mutex::default(),
            client: client.into(),
        }
    }

    /// Returns the UID of the cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn of(&self, namespace: &str) -> Api<ImageCache> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Adds a version of an object that was read or watched to the index.
    pub fn index(&self, object: &ImageCache) {
        let meta = &object.metadata;
        let (Some(id), Some(version)) = (convert::id(meta), convert::version(meta)) else { return };
        let status = match convert::read(object, &self.cluster) {
            Read::Record(record) => SeenStatus::Record(Arc::new(Stored { version, record: *record })),
            Read::New | Read::Invalid(_) => SeenStatus::Nothing,
            Read::Corrupt(what) => SeenStatus::Corrupt(what),
        };
        self.seen.note(id, (object.namespace().unwrap_or_default(), object.name_any()), version, status);
    }

    /// Removes an object that is gone from the index and returns its record.
    pub(super) fn unindex(&self, id: CacheId) -> Option<Arc<Stored>> {
        self.seen.forget(id)
    }

    /// Notes that the watch has seen every object: `known` are the IDs of those that exist. Returns the other
    /// IDs of the index.
    pub(super) fn complete(&self, known: &HashSet<CacheId>) -> Vec<CacheId> {
        self.seen.complete();
        self.seen.ids().into_iter().filter(|id| !known.contains(id)).collect()
    }

    /// Returns the record of an object as the watch last saw it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status.
    pub(super) fn seen(&self, id: CacheId) -> Result<Option<Arc<Stored>>, StoreError> {
        let name = || self.seen.name(id).unwrap_or_default();
        match self.seen.get(id) {
            Some(SeenStatus::Record(stored)) => Ok(Some(stored)),
            Some(SeenStatus::Nothing) | None => Ok(None),
            Some(SeenStatus::Corrupt(what)) => Err(corrupt_at(&name(), what)),
        }
    }

    /// Converts an object to a record with its version. `None` if there is no record yet, or the spec is
    /// invalid.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status.
    pub fn read(&self, object: &ImageCache) -> Result<Option<Stored>, StoreError> {
        match convert::read(object, &self.cluster) {
            Read::Record(record) => {
                let version = convert::version(&object.metadata).ok_or_else(|| {
                    corrupt(
                        object,
                        format!("resourceVersion {:?} is not a number", object.resource_version()),
                    )
                })?;
                Ok(Some(Stored { version, record: *record }))
            }
            Read::New | Read::Invalid(_) => Ok(None),
            // If it were skipped, its volumes would have no owner and be swept.
            Read::Corrupt(what) => Err(corrupt(object, what)),
        }
    }

    async fn objects(&self, namespace: Option<&str>) -> Result<Vec<ImageCache>, Fault> {
        let api = match namespace {
            Some(namespace) => self.of(namespace),
            None => Api::all(self.client.clone()),
        };
        let mut objects = Vec::new();
        let mut parameters = ListParams::default().limit(PAGE_SIZE);
        loop {
            let page = match request!("listing image caches", api.list(&parameters)) {
                Ok(page) => page,
                // The continue token has expired (410): start again.
                Err(fault) if fault.code() == 410 && !objects.is_empty() => {
                    objects.clear();
                    parameters.continue_token = None;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            objects.extend(page.items);
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                break;
            }
        }
        objects.iter().for_each(|object| self.index(object));
        Ok(objects)
    }

    /// Reads an object by its ID.
    async fn find(&self, id: CacheId) -> Result<Option<ImageCache>, Fault> {
        let Some((namespace, name)) = self.name(id).await? else { return Ok(None) };
        let doing = format!("reading the image cache {namespace}/{name}");
        let api = self.of(&namespace);
        let found = opt(request!(&doing, api.get(&name)))?;
        let found = found.filter(|object| convert::id(&object.metadata) == Some(id));
        match &found {
            Some(object) => self.index(object),
            None => drop(self.seen.forget(id)),
        }
        Ok(found)
    }

    /// Returns namespace and name of an object. The watch knows all but the newest objects. For those, the
    /// API server is queried at most once per [`MIN_LIST_INTERVAL`], because clients can request UIDs that do
    /// not exist.
    async fn name(&self, id: CacheId) -> Result<Option<ObjectName>, Fault> {
        if let Some(name) = self.seen.name(id) {
            return Ok(Some(name));
        }
        let mut listed = self.listed.lock().await;
        if let Some(name) = self.seen.name(id) {
            return Ok(Some(name));
        }
        if let Some(left) = listed.and_then(|at| MIN_LIST_INTERVAL.checked_sub(at.elapsed())) {
            tokio::time::sleep(left).await;
        }
        let found = self.note_names().await;
        *listed = Some(Instant::now());
        found?;
        Ok(self.seen.name(id))
    }

    /// Records the names of all objects in the index.
    async fn note_names(&self) -> Result<(), Fault> {
        let api: Api<ImageCache> = Api::all(self.client.clone());
        let mut parameters = ListParams::default().limit(PAGE_SIZE);
        loop {
            let page = request!("listing image caches", api.list_metadata(&parameters))?;
            for object in &page.items {
                if let Some(id) = convert::id(&object.metadata) {
                    let name = (object.namespace().unwrap_or_default(), object.name_any());
                    self.seen.note(id, name, 0, SeenStatus::Nothing);
                }
            }
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                return Ok(());
            }
        }
    }

    /// Writes the status of an object that was read.
    async fn put(&self, mut object: ImageCache, record: Record) -> Result<Stored, StoreError> {
        let id = record.id;
        let name = object.name_any();
        let api = self.of(namespace(&record.tenant));
        object.status = Some(convert::status(&record, object.status.as_ref(), object.metadata.generation));
        // This list is about half of an object, and a PUT without it leaves it unchanged.
        object.metadata.managed_fields = None;
        let doing = format!("writing the status of the image cache {}/{name}", record.tenant);
        match request!(&doing, api.replace_status(&name, &post_parameters(), &object)) {
            Ok(written) => {
                self.index(&written);
                self.read(&written)?
                    .ok_or_else(|| corrupt(&written, "the API server did not keep its status".to_owned()))
            }
            Err(fault) if fault.is_conflict() => Err(StoreError::Changed(id)),
            Err(fault) if fault.is_not_found() => Err(StoreError::Gone(id)),
            Err(fault) => Err(fault.into()),
        }
    }

    async fn replace(&self, stored: Stored) -> Result<Stored, StoreError> {
        let Stored { version, record } = stored;
        let object = self.find(record.id).await?.ok_or(StoreError::Gone(record.id))?;
        let name = (object.namespace().unwrap_or_default(), object.name_any());
        if name != (namespace(&record.tenant).to_owned(), record.spec.name.to_string()) {
            let reason = "tenant and name of a record never change".to_owned();
            return Err(StoreError::Failed { doing: "writing", reason, full: false });
        }
        if convert::version(&object.metadata) != Some(version) {
            return Err(StoreError::Changed(record.id));
        }
        self.put(object, record).await
    }

    async fn remove(&self, id: CacheId, version: u64) -> Result<(), StoreError> {
        let mut object = self.find(id).await?.ok_or(StoreError::Gone(id))?;
        if convert::version(&object.metadata) != Some(version) {
            return Err(StoreError::Changed(id));
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = self.of(&namespace);
        if object.metadata.deletion_timestamp.is_none() {
            let only = Preconditions { resource_version: object.resource_version(), uid: object.uid() };
            let parameters = DeleteParams { preconditions: Some(only), ..DeleteParams::default() };
            let doing = format!("deleting the image cache {namespace}/{name}");
            match request!(&doing, api.delete(&name, &parameters)) {
                Ok(_) => {}
                Err(fault) if fault.is_conflict() => return Err(StoreError::Changed(id)),
                Err(fault) if fault.is_not_found() => {
                    self.unindex(id);
                    return Ok(());
                }
                Err(fault) => return Err(fault.into()),
            }
            match self.find(id).await? {
                Some(present) => object = present,
                None => return Ok(()),
            }
        }
        self.remove_finalizer(&object).await?;
        self.unindex(id);
        Ok(())
    }

    /// Removes the finalizer of an object that is being deleted and for which nothing was made.
    ///
    /// # Errors
    /// A request failed.
    pub async fn finalize(&self, object: &ImageCache) -> Result<(), StoreError> {
        let ours = object.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        if ours && object.metadata.deletion_timestamp.is_some() {
            self.remove_finalizer(object).await
        } else {
            Ok(())
        }
    }

    /// Writes the status again if the spec has changed since the last write, because the expiry time in the
    /// status depends on it.
    ///
    /// # Errors
    /// A request failed.
    pub async fn observe(&self, object: &ImageCache, stored: &Stored) -> Result<(), StoreError> {
        let observed = object.status.as_ref().and_then(|status| status.observed_generation);
        if observed == object.metadata.generation || stored.record.status == Status::Deleting {
            return Ok(());
        }
        let Some(present) = self.find(stored.record.id).await? else { return Ok(()) };
        let Some(Stored { record, .. }) = self.read(&present)? else { return Ok(()) };
        match self.put(present, record).await {
            // The writer that was faster has observed it, or the watch delivers the object again.
            Ok(_) | Err(StoreError::Changed(_) | StoreError::Gone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes Larder's finalizer from an object and keeps all others.
    async fn remove_finalizer(&self, object: &ImageCache) -> Result<(), StoreError> {
        let finalizers: Vec<&String> =
            object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        self.set_finalizers(object, json!(finalizers)).await
    }

    async fn set_finalizers(
        &self,
        object: &ImageCache,
        finalizers: serde_json::Value,
    ) -> Result<(), StoreError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = self.of(&namespace);
        // The version makes this a compare-and-swap, so that no other finalizer is lost.
        let patch =
            json!({"metadata": {"resourceVersion": object.resource_version(), "finalizers": finalizers}});
        let doing = format!("writing the finalizers of the image cache {namespace}/{name}");
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let id = convert::id(&object.metadata).ok_or_else(|| corrupt(object, "it has no UID".to_owned()))?;
        match request!(&doing, api.patch(&name, &parameters, &Patch::Merge(&patch))) {
            Ok(_) => Ok(()),
            Err(fault) if fault.is_not_found() => Ok(()),
            Err(fault) if fault.is_conflict() => Err(StoreError::Changed(id)),
            Err(fault) => Err(fault.into()),
        }
    }

    async fn noted(&self) -> Result<Option<SavedClock>, StoreError> {
        let Some(map) = opt(request!("reading the saved clock readings", self.clock.get(CLOCK_CONFIGMAP)))?
        else {
            return Ok(None);
        };
        let text = map.data.and_then(|mut data| data.remove("noted"));
        // An unreadable value is treated as absent, which only delays expiry.
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    async fn note(&self, noted: SavedClock) -> Result<(), StoreError> {
        let text = serde_json::to_string(&noted).map_err(|e| StoreError::Failed {
            doing: "writing",
            reason: e.to_string(),
            full: false,
        })?;
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CLOCK_CONFIGMAP}, "data": {"noted": text},
        });
        let parameters = PatchParams::apply(MANAGER).force();
        request!(
            "saving the clock readings",
            self.clock.patch(CLOCK_CONFIGMAP, &parameters, &Patch::Apply(&map))
        )?;
        Ok(())
    }
}

fn post_parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

fn annotation<'a>(object: &'a ImageCache, name: &str) -> Option<&'a String> {
    object.annotations().get(name)
}

fn corrupt(object: &ImageCache, what: String) -> StoreError {
    corrupt_at(&(object.namespace().unwrap_or_default(), object.name_any()), what)
}

fn corrupt_at((namespace, name): &ObjectName, what: String) -> StoreError {
    StoreError::Corrupt {
        path: format!("imagecaches/{namespace}/{name}"),
        what,
        remedy: "check who can write imagecaches/status, and delete the object".to_owned(),
    }
}

impl Store for KubeStore {
    fn create(
        &self,
        record: Record,
        admission: Admission,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, StoreError>> {
        Box::pin(self.create(record, admission, key))
    }

    fn get(&self, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            match self.find(id).await? {
                Some(object) => self.read(&object),
                None => Ok(None),
            }
        })
    }

    fn list(&self, tenant: Option<TenantName>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        Box::pin(async move {
            let objects = self.objects(tenant.as_ref().map(namespace)).await?;
            let mut list = Vec::with_capacity(objects.len());
            for object in &objects {
                list.extend(self.read(object)?);
            }
            list.sort_by_key(|stored| (stored.record.created_at, stored.record.id));
            Ok(list)
        })
    }

    fn survey(&self) -> BoxFuture<'_, Result<Vec<Arc<Stored>>, StoreError>> {
        Box::pin(async move {
            let Some(all) = self.seen.all(FIRST_LIST_TIMEOUT).await else {
                return Ok(Store::list(self, None).await?.into_iter().map(Arc::new).collect());
            };
            let mut records = Vec::with_capacity(all.len());
            for (name, status) in all {
                match status {
                    SeenStatus::Record(stored) => records.push(stored),
                    SeenStatus::Nothing => {}
                    SeenStatus::Corrupt(what) => return Err(corrupt_at(&name, what)),
                }
            }
            Ok(records)
        })
    }

    fn replace(&self, stored: Stored) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(self.replace(stored))
    }

    fn remove(&self, id: CacheId, version: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.remove(id, version))
    }

    fn forget_keys(&self, time: DateTime<Utc>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.keys.forget(time).await?) })
    }

    fn noted(&self) -> BoxFuture<'_, Result<Option<SavedClock>, StoreError>> {
        Box::pin(self.noted())
    }

    fn note(&self, noted: SavedClock) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.note(noted))
    }
}
