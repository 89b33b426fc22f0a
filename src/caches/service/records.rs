//! The records of image caches, and the watchers of their events.
//!
//! Invariant: every change that this daemon writes goes through here and is sent to the watchers after it was
//! stored, never before.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::caches::error::Error;
use crate::caches::hub::{Hub, Watch};
use crate::caches::logs;
use crate::caches::record::Record;
use crate::caches::store::{AdmissionDecision, Created, IdempotencyKey, Store, StoreError, Stored};
use larder_model::event::Line;
use larder_model::image_cache::{CacheId, TenantName};
use larder_sys::clock::guard::SavedClock;

/// The store of records and the watchers of their events.
#[derive(Debug)]
pub(super) struct Records {
    store: Arc<dyn Store>,
    hub: Hub,
}

impl Records {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Records { store, hub: Hub::default() }
    }

    /// Returns all records as the store last saw them.
    pub(super) async fn survey(&self) -> Result<Survey, StoreError> {
        let all = self.store.survey().await?;
        Ok(Survey(all.into_iter().map(|stored| (stored.record.id, stored)).collect()))
    }

    /// Lists the records of a tenant, oldest first, shared with other readers.
    pub(super) async fn list_of(&self, tenant: &TenantName) -> Result<Arc<[Stored]>, StoreError> {
        self.store.list_of(tenant.clone()).await
    }

    /// Lists the records of a tenant as they are stored now.
    pub(super) async fn list_stored(&self, tenant: &TenantName) -> Result<Vec<Stored>, StoreError> {
        self.store.list(Some(tenant.clone())).await
    }

    /// Returns a record of the tenant. Records of other tenants are reported as not found. Adds the name to
    /// the log lines of the request.
    pub(super) async fn get_of(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let stored = self.store.get_of(tenant.clone(), id).await?;
        let record = stored.ok_or(Error::NotFound(id))?.record;
        logs::name(&record.spec.name);
        Ok(record)
    }

    /// Reads one record. `None` if it is gone.
    pub(super) async fn get(&self, id: CacheId) -> Result<Option<Record>, StoreError> {
        Ok(self.store.get(id).await?.map(|stored| stored.record))
    }

    /// Writes a new record, if admission is open.
    pub(super) async fn create(
        &self,
        record: Record,
        admission: AdmissionDecision,
        key: Option<IdempotencyKey>,
    ) -> Result<Created, StoreError> {
        self.store.create(record, admission, key).await
    }

    /// Changes a record and retries until no concurrent change intervenes. `edit` returns `true` if it
    /// changed the record. Returns the record after the change; `None` if it is gone.
    pub(super) async fn change(
        &self,
        id: CacheId,
        mut edit: impl FnMut(&mut Record) -> bool,
    ) -> Result<Option<Record>, StoreError> {
        loop {
            let Some(mut stored) = self.store.get(id).await? else { return Ok(None) };
            let sequence = stored.record.sequence;
            if !edit(&mut stored.record) {
                return Ok(Some(stored.record));
            }
            match self.store.replace(stored).await {
                Ok(Stored { record, .. }) => {
                    self.hub.changed(&record, sequence);
                    return Ok(Some(record));
                }
                Err(StoreError::Changed(_)) => {}
                Err(StoreError::Gone(_)) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// Deletes the record of a deleted cache, unless it is changed at the same time.
    pub(super) async fn remove(&self, id: CacheId) -> Result<(), StoreError> {
        let Some(stored) = self.store.get(id).await? else { return Ok(()) };
        match self.store.remove(id, stored.version).await {
            Ok(()) => {
                logs::of(&stored.record).in_scope(|| tracing::info!("deleted"));
                self.hub.end(id);
                Ok(())
            }
            // A concurrent change won; the next cleanup checks again.
            Err(StoreError::Changed(_) | StoreError::Gone(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Follows the events of a cache, starting after the event with number `after`.
    pub(super) async fn watch(&self, tenant: &TenantName, id: CacheId, after: u64) -> Result<Watch, Error> {
        let subscription = self.hub.subscribe(id);
        // Read after subscribing, so that no event is missed.
        let record = self.get_of(tenant, id).await?;
        Ok(subscription.from(&record, after))
    }

    /// Sends a line of the builder to the watchers.
    pub(super) fn publish_line(&self, id: CacheId, line: Line) {
        self.hub.build(id, line);
    }

    /// Sends the events of a version that another daemon wrote. `last_sent` is the number of the last event
    /// already sent.
    pub(super) fn publish_events(&self, record: &Record, last_sent: u64) {
        self.hub.changed(record, last_sent);
    }

    /// Ends the streams of all watchers of a cache that is gone.
    pub(super) fn end_watches(&self, id: CacheId) {
        self.hub.end(id);
    }

    /// Deletes idempotency keys whose record was created before `time`.
    pub(super) async fn forget_keys(&self, time: DateTime<Utc>) -> Result<(), StoreError> {
        self.store.forget_keys(time).await
    }

    /// Returns the clocks that were saved last.
    pub(super) async fn saved_clock(&self) -> Result<Option<SavedClock>, StoreError> {
        self.store.noted().await
    }

    /// Saves the clocks in place of the earlier ones.
    pub(super) async fn save_clock(&self, clock: SavedClock) -> Result<(), StoreError> {
        self.store.note(clock).await
    }
}

/// The records of a [survey](Store::survey), by ID.
pub(super) struct Survey(HashMap<CacheId, Arc<Stored>>);

impl Survey {
    /// Returns the record of an image cache.
    pub(super) fn get(&self, id: &CacheId) -> Option<&Record> {
        self.0.get(id).map(|stored| &stored.record)
    }

    /// Returns all records in arbitrary order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Record> + Clone {
        self.0.values().map(|stored| &stored.record)
    }
}

#[cfg(test)]
impl From<Vec<Record>> for Survey {
    fn from(records: Vec<Record>) -> Self {
        let stored = records.into_iter().map(|record| Arc::new(Stored { version: 1, record }));
        Survey(stored.map(|stored| (stored.record.id, stored)).collect())
    }
}
