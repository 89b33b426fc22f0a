//! Handling of record changes by other daemons, where several share the records.

use super::Service;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use larder_model::image_cache::Status;

impl Service {
    /// Handles a new version of a record. `last_sent` is the number of the last event already sent to
    /// watchers. The version can be out of date, so each decision reads the store again.
    ///
    /// # Errors
    /// Fails if the records cannot be read.
    pub async fn notice(&self, record: &Record, last_sent: u64) -> Result<(), StoreError> {
        self.records().publish_events(record, last_sent);
        let (tenant, id) = (&record.tenant, record.id);
        let builds = &self.0.builds;
        let wanted = record.wants_build();
        let waits = wanted && record.work.as_ref().is_some_and(|work| work.attempts == 0);
        if waits && !builds.is_building(id) {
            self.admission().enqueue(tenant, id);
        } else if !waits {
            self.admission().dequeue(tenant, id);
        }
        if !self.leads() {
            return Ok(());
        }
        if record.status == Status::Deleting {
            self.0.janitor.request();
        }
        if !wanted && builds.is_building(id) && !builds.is_wanted(id).await? {
            builds.interrupt(id);
        }
        Ok(())
    }

    /// Handles the deletion of a record.
    pub fn notice_gone(&self, record: &Record) {
        self.admission().dequeue(&record.tenant, record.id);
        self.0.builds.interrupt(record.id);
        self.records().end_watches(record.id);
        self.0.janitor.request();
    }
}
