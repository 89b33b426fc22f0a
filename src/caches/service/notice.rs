//! Handling of record changes by other daemons, where several share the records.

use super::Service;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use larder_model::image_cache::{CacheId, Status};

impl Service {
    /// Handles a new version of a record. `last_sent` is the number of the last event already sent to
    /// watchers. The version can be out of date, so each decision reads the store again.
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub async fn notice(&self, record: &Record, last_sent: u64) -> Result<(), StoreError> {
        self.0.hub.changed(record, last_sent);
        let (tenant, id) = (&record.tenant, record.id);
        let wanted = wants_builder(record);
        let waits = wanted && record.work.as_ref().is_some_and(|work| work.attempts == 0);
        if waits && !self.live().contains_key(&id) {
            self.enqueue(tenant, id);
        } else if !waits {
            self.queue().remove(tenant, id);
        }
        if !self.leads() {
            return Ok(());
        }
        if record.status == Status::Deleting {
            self.0.sweep.notify_one();
        }
        if !wanted && self.live().contains_key(&id) && !self.wants_builder(id).await? {
            self.interrupt(id);
        }
        Ok(())
    }

    /// Handles the deletion of a record.
    pub fn notice_gone(&self, record: &Record) {
        self.queue().remove(&record.tenant, record.id);
        self.interrupt(record.id);
        self.0.hub.end(record.id);
        self.0.sweep.notify_one();
    }

    pub(super) async fn wants_builder(&self, id: CacheId) -> Result<bool, StoreError> {
        Ok(self.0.store.get(id).await?.is_some_and(|stored| wants_builder(&stored.record)))
    }
}

fn wants_builder(record: &Record) -> bool {
    record.status != Status::Deleting && record.work.is_some()
}
