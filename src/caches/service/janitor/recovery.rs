//! Recovery at start: resumes builds, finishes deletions, and handles volumes and records without each other.

use super::super::StartError;
use super::{Janitor, Uses};
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use larder_model::image_cache::Status;

impl Janitor {
    /// Cleans up after an earlier daemon before new work starts.
    pub(in crate::caches::service) async fn recover(&self) -> Result<(), StartError> {
        let all = self.0.uses.records.survey().await?;
        let mut records: Vec<_> = all.values().collect();
        records.sort_by_key(|record| record.created_at);
        let now = self.now();
        let (mut builds, mut deletions) = (0, 0);
        for record in records {
            if record.status == Status::Deleting {
                deletions += 1;
            } else if self.check_present(record, now).await? && record.wants_build() {
                builds += 1;
                self.resume(record).await?;
            }
        }
        if builds + deletions > 0 {
            tracing::info!(builds, deletions, "resuming unfinished work");
        }
        Ok(self.sweep().await?)
    }

    /// Queues the build of a record again. A stop does not count as a failed attempt.
    async fn resume(&self, record: &Record) -> Result<(), StoreError> {
        let Uses { records, admission, .. } = &self.0.uses;
        let reset = |record: &mut Record| {
            let attempts = record.work.as_mut().map(|work| std::mem::take(&mut work.attempts));
            attempts.is_some_and(|attempts| attempts > 0)
        };
        records.change(record.id, reset).await?;
        admission.enqueue(&record.tenant, record.id);
        Ok(())
    }
}
