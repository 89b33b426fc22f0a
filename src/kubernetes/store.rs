//! Stores records as custom resources.
//!
//! Compare-and-swap is a PUT of the status with the resourceVersion that was read. A create is a POST of the
//! spec, whose name the API server accepts only once, followed by a PUT of the status. Conditions over
//! several objects (quota, capacity, one record for each Idempotency-Key) are checked and written by one
//! daemon at a time, under a short Lease. A ResourceQuota is enforced independently of that.
//!
//! ```text
//! create, adopt ──► admission      one request at a time, and its limits
//!       │
//!       ├──► keys                  answers by Idempotency-Key
//!       └──► objects               custom resources, their index and their finalizer
//! ```

mod admission;
mod adopt;
mod create;
mod keys;
mod objects;
mod saved_clock;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use kube::{Client, ResourceExt as _};

use self::admission::Admission;
use self::keys::Keys;
use self::objects::Objects;
use self::saved_clock::SavedClocks;
use super::crd::ImageCache;
use super::names::namespace;
use crate::caches::record::Record;
use crate::caches::store::{AdmissionDecision, Created, IdempotencyKey, Store, StoreError, Stored};
use larder_model::image_cache::{CacheId, TenantName};
use larder_sys::clock::guard::SavedClock;

/// Time after a create in which the annotations of its object replace the idempotency key, in case the key
/// was not stored.
const REPAIR_WINDOW: TimeDelta = TimeDelta::hours(1);

/// Keeps records in the cluster's own store.
#[derive(Debug)]
pub struct KubeStore {
    objects: Objects,
    admission: Admission,
    keys: Keys,
    clocks: SavedClocks,
}

impl KubeStore {
    /// Returns the store of the cluster `cluster`. `own` is Larder's own namespace. `identity` identifies
    /// this process.
    pub fn new(client: Client, cluster: &str, own: &str, identity: &str) -> Self {
        KubeStore {
            admission: Admission::new(client.clone(), own, identity),
            keys: Keys::new(client.clone(), own),
            clocks: SavedClocks::new(client.clone(), own),
            objects: Objects::new(client, cluster),
        }
    }

    /// Returns the UID of the cluster.
    pub fn cluster(&self) -> &str {
        self.objects.cluster()
    }

    /// Adds a version of an object that was read or watched to the index.
    pub fn index(&self, object: &ImageCache) {
        self.objects.index(object);
    }

    /// Removes an object that is gone from the index and returns its record.
    pub(super) fn unindex(&self, id: CacheId) -> Option<Arc<Stored>> {
        self.objects.unindex(id)
    }

    /// Notes that the watch has seen every object: `known` are the IDs of those that exist. Returns the other
    /// IDs of the index.
    pub(super) fn complete(&self, known: &HashSet<CacheId>) -> Vec<CacheId> {
        self.objects.complete(known)
    }

    /// Returns the record of an object as the watch last saw it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status.
    pub(super) fn seen(&self, id: CacheId) -> Result<Option<Arc<Stored>>, StoreError> {
        self.objects.seen(id)
    }

    /// Converts an object to a record with its version. `None` if there is no record yet, or the spec is
    /// invalid.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if Larder did not write the status.
    pub fn read(&self, object: &ImageCache) -> Result<Option<Stored>, StoreError> {
        self.objects.read(object)
    }

    /// Removes the finalizer of an object that is being deleted and for which nothing was made.
    ///
    /// # Errors
    /// A request failed.
    pub async fn finalize(&self, object: &ImageCache) -> Result<(), StoreError> {
        self.objects.finalize(object).await
    }

    /// Writes the status again if the spec has changed since the last write, because the expiry time in the
    /// status depends on it.
    ///
    /// # Errors
    /// A request failed.
    pub async fn observe(&self, object: &ImageCache, stored: &Stored) -> Result<(), StoreError> {
        self.objects.observe(object, stored).await
    }
}

fn annotation<'a>(object: &'a ImageCache, name: &str) -> Option<&'a String> {
    object.annotations().get(name)
}

impl Store for KubeStore {
    fn create(
        &self,
        record: Record,
        admission: AdmissionDecision,
        key: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, StoreError>> {
        Box::pin(self.create(record, admission, key))
    }

    fn get(&self, id: CacheId) -> BoxFuture<'_, Result<Option<Stored>, StoreError>> {
        Box::pin(async move {
            match self.objects.find(id).await? {
                Some(object) => self.read(&object),
                None => Ok(None),
            }
        })
    }

    fn list(&self, tenant: Option<TenantName>) -> BoxFuture<'_, Result<Vec<Stored>, StoreError>> {
        Box::pin(async move {
            let objects = self.objects.list(tenant.as_ref().map(namespace)).await?;
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
            if let Some(records) = self.objects.survey().await? {
                return Ok(records);
            }
            Ok(Store::list(self, None).await?.into_iter().map(Arc::new).collect())
        })
    }

    fn replace(&self, stored: Stored) -> BoxFuture<'_, Result<Stored, StoreError>> {
        Box::pin(self.objects.replace(stored))
    }

    fn remove(&self, id: CacheId, version: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.objects.remove(id, version))
    }

    fn forget_keys(&self, time: DateTime<Utc>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.keys.forget(time).await?) })
    }

    fn noted(&self) -> BoxFuture<'_, Result<Option<SavedClock>, StoreError>> {
        Box::pin(self.clocks.read())
    }

    fn note(&self, noted: SavedClock) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.clocks.write(noted))
    }
}
