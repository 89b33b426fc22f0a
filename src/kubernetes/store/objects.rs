//! The custom resources of image caches, and the index of those that were seen.
//!
//! Invariants:
//!
//! - A status is written only to the version that was read.
//! - Every version that this process reads or writes is added to the index.

mod finalizers;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Client, ResourceExt as _};

use super::super::client::ApiServer;
use super::super::convert::{self, Read};
use super::super::crd::ImageCache;
use super::super::fault::{Fault, opt, request};
use super::super::index::{Index, IndexedStatus, ObjectName};
use super::super::names::{MANAGER, namespace};
use crate::caches::record::Record;
use crate::caches::store::{StoreError, Stored};
use larder_model::image_cache::{CacheId, Status};

/// Maximum number of objects in one response to a list request.
const PAGE_SIZE: u32 = 500;
/// Maximum time that a survey waits for the watch to see all objects. After that it lists them, which takes
/// much memory.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Minimum interval between two lists of the cluster's objects for UIDs that the watch has not seen.
const MIN_LIST_INTERVAL: Duration = Duration::from_secs(1);

/// The image caches of a cluster as objects.
#[derive(Debug)]
pub(super) struct Objects {
    client: ApiServer,
    /// UID of the cluster.
    cluster: String,
    index: Index,
    /// Time of the last list of all objects for a UID that the watch had not seen.
    listed: tokio::sync::Mutex<Option<Instant>>,
}

impl Objects {
    pub(super) fn new(client: Client, cluster: &str) -> Self {
        Objects {
            client: client.into(),
            cluster: cluster.to_owned(),
            index: Index::default(),
            listed: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the UID of the cluster.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Returns the objects of a namespace.
    pub(super) fn api(&self, namespace: &str) -> Api<ImageCache> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Adds a version of an object that was read or watched to the index.
    pub(super) fn index(&self, object: &ImageCache) {
        let meta = &object.metadata;
        let (Some(id), Some(version)) = (convert::id(meta), convert::version(meta)) else { return };
        let status = match convert::read(object, &self.cluster) {
            Read::Record(record) => IndexedStatus::Record(Arc::new(Stored { version, record: *record })),
            Read::New | Read::Invalid(_) => IndexedStatus::Nothing,
            Read::Corrupt(what) => IndexedStatus::Corrupt(what),
        };
        self.index.note(id, (object.namespace().unwrap_or_default(), object.name_any()), version, status);
    }

    /// Removes an object that is gone from the index and returns its record.
    pub(super) fn unindex(&self, id: CacheId) -> Option<Arc<Stored>> {
        self.index.forget(id)
    }

    /// Notes that the watch has seen every object: `known` are the IDs of those that exist. Returns the other
    /// IDs of the index.
    pub(super) fn complete(&self, known: &HashSet<CacheId>) -> Vec<CacheId> {
        self.index.complete();
        self.index.ids().into_iter().filter(|id| !known.contains(id)).collect()
    }

    /// Returns the record of an object as the watch last saw it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status.
    pub(super) fn seen(&self, id: CacheId) -> Result<Option<Arc<Stored>>, StoreError> {
        let name = || self.index.name(id).unwrap_or_default();
        match self.index.get(id) {
            Some(IndexedStatus::Record(stored)) => Ok(Some(stored)),
            Some(IndexedStatus::Nothing) | None => Ok(None),
            Some(IndexedStatus::Corrupt(what)) => Err(corrupt_at(&name(), what)),
        }
    }

    /// Returns all records as the watch last saw them. `None` if it has not seen all of them in time.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status of an object.
    pub(super) async fn survey(&self) -> Result<Option<Vec<Arc<Stored>>>, StoreError> {
        let Some(all) = self.index.all(FIRST_LIST_TIMEOUT).await else { return Ok(None) };
        let mut records = Vec::with_capacity(all.len());
        for (name, status) in all {
            match status {
                IndexedStatus::Record(stored) => records.push(stored),
                IndexedStatus::Nothing => {}
                IndexedStatus::Corrupt(what) => return Err(corrupt_at(&name, what)),
            }
        }
        Ok(Some(records))
    }

    /// Converts an object to a record with its version. `None` if there is no record yet, or the spec is
    /// invalid.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status.
    pub(super) fn read(&self, object: &ImageCache) -> Result<Option<Stored>, StoreError> {
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

    /// Lists the objects of one namespace, or of all.
    pub(super) async fn list(&self, namespace: Option<&str>) -> Result<Vec<ImageCache>, Fault> {
        let api = match namespace {
            Some(namespace) => self.api(namespace),
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
    pub(super) async fn find(&self, id: CacheId) -> Result<Option<ImageCache>, Fault> {
        let Some((namespace, name)) = self.name(id).await? else { return Ok(None) };
        let doing = format!("reading the image cache {namespace}/{name}");
        let api = self.api(&namespace);
        let found = opt(request!(&doing, api.get(&name)))?;
        let found = found.filter(|object| convert::id(&object.metadata) == Some(id));
        match &found {
            Some(object) => self.index(object),
            None => drop(self.index.forget(id)),
        }
        Ok(found)
    }

    /// Returns namespace and name of an object. The watch knows all but the newest objects. For those, the
    /// API server is queried at most once per [`MIN_LIST_INTERVAL`], because clients can request UIDs that do
    /// not exist.
    async fn name(&self, id: CacheId) -> Result<Option<ObjectName>, Fault> {
        if let Some(name) = self.index.name(id) {
            return Ok(Some(name));
        }
        let mut listed = self.listed.lock().await;
        if let Some(name) = self.index.name(id) {
            return Ok(Some(name));
        }
        if let Some(left) = listed.and_then(|at| MIN_LIST_INTERVAL.checked_sub(at.elapsed())) {
            tokio::time::sleep(left).await;
        }
        let found = self.note_names().await;
        *listed = Some(Instant::now());
        found?;
        Ok(self.index.name(id))
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
                    self.index.note(id, name, 0, IndexedStatus::Nothing);
                }
            }
            parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if parameters.continue_token.is_none() {
                return Ok(());
            }
        }
    }

    /// Writes the status of an object that was read.
    pub(super) async fn put(&self, mut object: ImageCache, record: Record) -> Result<Stored, StoreError> {
        let id = record.id;
        let name = object.name_any();
        let api = self.api(namespace(&record.tenant));
        object.status = Some(convert::status(&record, object.status.as_ref(), object.metadata.generation));
        // This list is about half of an object, and a PUT without it leaves it unchanged.
        object.metadata.managed_fields = None;
        let doing = format!("writing the status of the image cache {}/{name}", record.tenant);
        match request!(&doing, api.replace_status(&name, &write_parameters(), &object)) {
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

    /// Writes a record whose version has not changed.
    pub(super) async fn replace(&self, stored: Stored) -> Result<Stored, StoreError> {
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

    /// Deletes an object whose version has not changed.
    pub(super) async fn remove(&self, id: CacheId, version: u64) -> Result<(), StoreError> {
        let mut object = self.find(id).await?.ok_or(StoreError::Gone(id))?;
        if convert::version(&object.metadata) != Some(version) {
            return Err(StoreError::Changed(id));
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = self.api(&namespace);
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

    /// Writes the status again if the spec has changed since the last write, because the expiry time in the
    /// status depends on it.
    ///
    /// # Errors
    /// A request failed.
    pub(super) async fn observe(&self, object: &ImageCache, stored: &Stored) -> Result<(), StoreError> {
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
}

/// Returns the parameters of creates and status writes.
pub(super) fn write_parameters() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

pub(super) fn corrupt(object: &ImageCache, what: String) -> StoreError {
    corrupt_at(&(object.namespace().unwrap_or_default(), object.name_any()), what)
}

fn corrupt_at((namespace, name): &ObjectName, what: String) -> StoreError {
    StoreError::Corrupt {
        path: format!("imagecaches/{namespace}/{name}"),
        what,
        remedy: "check who can write imagecaches/status, and delete the object".to_owned(),
    }
}
