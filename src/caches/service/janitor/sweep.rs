//! The sweep: discards volumes and archives that no record needs, and then deletes the records of deleted
//! caches.

use std::collections::HashMap;
use std::time::Duration;

use super::super::records::Survey;
use super::super::{archives, volumes_failed};
use super::{Janitor, Uses};
use crate::caches::logs;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use crate::caches::volumes::{Discarded, VolumeId};
use larder_model::image_cache::{CacheId, Status, TenantName};

/// Delay before the next cleanup while a volume is being removed.
const RECHECK_DELAY: Duration = Duration::from_secs(1);

/// The reason why a volume is not removed yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocker {
    Used,
    Going,
}

impl Janitor {
    /// Discards every volume and archive that no record needs, and deletes the records of deleted caches
    /// without volumes.
    pub(super) async fn sweep(&self) -> Result<(), StoreError> {
        let Uses { records, admission, builds, volumes: storage, .. } = &self.0.uses;
        // List volumes before reading records, so that the list has no volume created after its record was
        // read.
        let mut volumes = storage.list().await.map_err(|e| volumes_failed(&e))?;
        let received = archives::list(&**storage).await?;
        // Read the promises before the records: an upload has its promise until its record exists.
        let uploading = admission.uploading();
        // Read the builders before the records: a builder that has ended has updated its record.
        let building = builds.ids();
        let records = records.survey().await?;
        // A record is deleted after its volumes, so the list must contain all of them.
        for record in records.values().filter(|record| record.status == Status::Deleting) {
            let own = storage.list_of(record).await.map_err(|e| volumes_failed(&e))?;
            let new: Vec<VolumeId> = own.into_iter().filter(|volume| !volumes.contains(volume)).collect();
            volumes.extend(new);
        }
        let unneeded = volumes.into_iter().filter(|volume| {
            let record = records.get(&volume.id);
            let needed =
                record.is_some_and(|r| r.tenant == volume.tenant && r.needs_volume(volume.generation));
            !needed && !building.contains(&volume.id)
        });
        let unneeded = self.keep_previous(unneeded.collect(), &records).await?;
        let unneeded = self.confirm(unneeded).await?;
        let discarded = !unneeded.is_empty();
        let blockers = self.discard(unneeded, &records).await?;
        storage.tidy(discarded);
        let done =
            |id: &CacheId| !uploading.contains(id) && records.get(id).is_none_or(|r| !r.needs_archive());
        archives::remove(&**storage, received.into_iter().filter(done).collect()).await?;
        for record in records.values() {
            let id = record.id;
            if record.status != Status::Deleting || building.contains(&id) {
                continue;
            }
            match blockers.get(&id) {
                Some(Blocker::Used) => self.record_in_use(record).await?,
                Some(_) => {}
                None => self.0.uses.records.remove(id).await?,
            }
        }
        Ok(())
    }

    /// Returns those of `unneeded` that no record needs. Reads the store again, because a survey can be out
    /// of date.
    async fn confirm(&self, unneeded: Vec<VolumeId>) -> Result<Vec<VolumeId>, StoreError> {
        let mut tenants: HashMap<TenantName, HashMap<CacheId, Record>> = HashMap::new();
        for volume in &unneeded {
            if !tenants.contains_key(&volume.tenant) {
                let own = self.0.uses.records.list_stored(&volume.tenant).await?;
                let own = own.into_iter().map(|stored| (stored.record.id, stored.record)).collect();
                tenants.insert(volume.tenant.clone(), own);
            }
        }
        let is_needed = |volume: &VolumeId| {
            let record = tenants.get(&volume.tenant).and_then(|own| own.get(&volume.id));
            record.is_some_and(|record| record.needs_volume(volume.generation))
        };
        Ok(unneeded.into_iter().filter(|volume| !is_needed(volume)).collect())
    }

    /// Discards volumes and returns the caches that still have one, with the reason.
    async fn discard(
        &self,
        volumes: Vec<VolumeId>,
        records: &Survey,
    ) -> Result<HashMap<CacheId, Blocker>, StoreError> {
        let orphans: Vec<CacheId> =
            volumes.iter().map(|volume| volume.id).filter(|id| records.get(id).is_none()).collect();
        let mut blockers = HashMap::new();
        for volume in volumes {
            let result = self.0.uses.volumes.discard(volume.clone()).await;
            let VolumeId { tenant, id, generation } = volume;
            let name = records.get(&id).map(|record| &record.spec.name);
            let _entered = logs::span(&tenant, id, name).entered();
            match result {
                Ok(Discarded::Gone) if orphans.contains(&id) => {
                    tracing::warn!(generation, "discarded a volume without a record");
                }
                Ok(Discarded::Gone) => tracing::info!(generation, "volume discarded"),
                // If a cache has two such volumes, report the one in use.
                Ok(Discarded::InUse(used)) => {
                    tracing::debug!(generation, "keeping the volume: {used}");
                    blockers.insert(id, Blocker::Used);
                }
                Ok(Discarded::Going) => {
                    blockers.entry(id).or_insert(Blocker::Going);
                }
                Err(error) => {
                    tracing::error!(generation, %error, "cannot discard a volume");
                    blockers.insert(id, Blocker::Used);
                }
            }
        }
        if blockers.values().any(|why| *why == Blocker::Going) {
            let janitor = self.clone();
            self.0.uses.tasks.spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(RECHECK_DELAY) => janitor.request(),
                    () = janitor.0.uses.tasks.stopping() => {}
                }
            });
        }
        Ok(blockers)
    }

    /// Records the reason for a delayed deletion, which the tenant can read. Does not record it twice.
    async fn record_in_use(&self, record: &Record) -> Result<(), StoreError> {
        const MESSAGE: &str = "the volume is in use: it is deleted when its last user releases it";
        if record.message.as_deref() == Some(MESSAGE) {
            return Ok(());
        }
        let now = self.now();
        let explain = |record: &mut Record| {
            let deleting = record.status == Status::Deleting;
            if deleting {
                record.set_message(MESSAGE, None);
                record.note(now, MESSAGE);
            }
            deleting
        };
        self.0.uses.records.change(record.id, explain).await?;
        Ok(())
    }
}
