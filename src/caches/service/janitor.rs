//! Time and order: retention, failed records, deletions, volumes that nobody needs.

use std::collections::{HashMap, HashSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::records::Records;
use super::{Service, state_failed};
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use crate::caches::volumes::{Discarded, VolumeId};
use larder_model::image_cache::{CacheId, Status, TenantName};
use larder_sys::clock::guard::{Expiry, TimeGuard};

/// How often the house is looked over when nothing asks for it.
const EVERY: Duration = Duration::from_secs(15);
/// When it is looked over again if something is on its way out.
const SOON: Duration = Duration::from_secs(1);
/// How often old idempotency keys are looked for. In a cluster that lists them.
const KEYS_EVERY: TimeDelta = TimeDelta::minutes(10);
/// Hours for which an idempotency key is known.
const KEY_HOURS: i64 = 24;

/// Why a volume is not gone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InTheWay {
    Used,
    Going,
}

impl Service {
    /// Looks over the house again and again, until the daemon stops.
    pub(super) async fn keep_house(self) {
        let mut keys = self.now();
        loop {
            if let Err(error) = self.look_over().await {
                tracing::error!(%error, "expiry and deletions are put off");
            }
            if self.now() >= keys {
                keys = self.now() + KEYS_EVERY;
                let before = self.now() - TimeDelta::hours(KEY_HOURS);
                if let Err(error) = self.0.store.forget_keys(before).await {
                    tracing::warn!(%error, "old idempotency keys stay for now");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.0.sweep.notified() => {}
                () = self.0.stop.cancelled() => return,
            }
        }
    }

    /// One look over the house.
    pub(super) async fn look_over(&self) -> Result<(), StoreError> {
        let now = self.now();
        let expire = self.may_expire();
        let noted = self.guard().note();
        let noted = self.0.store.note(noted).await;
        let aged = if expire { self.age_all(now).await } else { Ok(()) };
        // Whatever else fails: on a disk that is full this is what makes room.
        let swept = self.sweep().await;
        noted.and(aged).and(swept)
    }

    async fn age_all(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        for record in self.records().await?.values() {
            self.age(record, now).await?;
        }
        Ok(())
    }

    pub(super) fn guard(&self) -> MutexGuard<'_, TimeGuard> {
        self.0.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the clock can be believed.
    fn may_expire(&self) -> bool {
        let held = self.guard().check(&*self.0.clock) != Expiry::Allowed;
        self.0.metrics.expiry_held(held);
        !held
    }

    /// What time does to one record.
    async fn age(&self, record: &Record, now: DateTime<Utc>) -> Result<(), StoreError> {
        let (failed, grace) = self.settings(|settings| {
            let caches = &settings.caches;
            (
                TimeDelta::hours(i64::from(caches.failed_retention_hours)),
                TimeDelta::minutes(i64::from(caches.expired_grace_minutes)),
            )
        });
        let expired = record.expires_at().is_some_and(|at| at <= now);
        let age = now - record.status_since;
        match record.status {
            Status::Available if expired => {
                let message = format!("expired after {} days", record.spec.retention_days);
                self.change(record.id, |record| {
                    // What is being refreshed would only be made to be thrown away.
                    if record.status != Status::Available {
                        return false;
                    }
                    record.work = None;
                    record.message = Some(message.clone());
                    record.turn(Status::Unavailable, now, message.clone());
                    true
                })
                .await?;
                self.interrupt(record.id);
                tracing::info!(cache = %record.id, tenant = %record.tenant, "expired");
            }
            Status::Unavailable if expired && age >= grace => {
                self.let_go(record, now, "it has expired").await?
            }
            Status::Failed if age >= failed => {
                self.let_go(record, now, "its failure was kept long enough").await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn let_go(&self, record: &Record, now: DateTime<Utc>, why: &str) -> Result<(), StoreError> {
        let status = record.status;
        self.change(record.id, |record| {
            if record.status != status {
                return false;
            }
            record.turn(Status::Deleting, now, why);
            true
        })
        .await?;
        Ok(())
    }

    /// Discards every volume and archive that no record needs, and removes the records of deleted caches that have none left.
    pub(super) async fn sweep(&self) -> Result<(), StoreError> {
        // Volumes before records: a volume that is made after its record was read is not in the list.
        let mut volumes = self.0.volumes.list().await.map_err(|e| state_failed(&e))?;
        let archives = self.archives().await?;
        // What is being sent before records, too: it is promised for until its record is there.
        let promised: HashSet<CacheId> = self.promised().keys().copied().collect();
        // Builders before records too: one that has ended has written down how.
        let building: HashSet<CacheId> = self.live().keys().copied().collect();
        let records = self.records().await?;
        // A record goes last, so nothing of it may be missing from the list.
        for record in records.values().filter(|record| record.status == Status::Deleting) {
            let own = self.0.volumes.list_of(record).await.map_err(|e| state_failed(&e))?;
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
        let in_the_way = self.discard(unneeded, &records).await?;
        self.0.volumes.tidy(discarded);
        let done =
            |id: &CacheId| !promised.contains(id) && records.get(id).is_none_or(|r| !r.needs_archive());
        self.remove_archives(archives.into_iter().filter(done).collect()).await?;
        for record in records.values() {
            let id = record.id;
            if record.status != Status::Deleting || building.contains(&id) {
                continue;
            }
            match in_the_way.get(&id) {
                Some(InTheWay::Used) => self.say_in_use(record).await?,
                Some(_) => {}
                None => self.forget(id).await?,
            }
        }
        Ok(())
    }

    /// Of `unneeded` the volumes that no record needs, as the store says now: a survey can be behind it.
    async fn confirm(&self, unneeded: Vec<VolumeId>) -> Result<Vec<VolumeId>, StoreError> {
        let mut tenants: HashMap<TenantName, HashMap<CacheId, Record>> = HashMap::new();
        for volume in &unneeded {
            if !tenants.contains_key(&volume.tenant) {
                let own = self.0.store.list(Some(volume.tenant.clone())).await?;
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

    /// Gives the caches of which a volume is not gone, and why not.
    async fn discard(
        &self,
        volumes: Vec<VolumeId>,
        records: &Records,
    ) -> Result<HashMap<CacheId, InTheWay>, StoreError> {
        let orphans: Vec<CacheId> =
            volumes.iter().map(|volume| volume.id).filter(|id| records.get(id).is_none()).collect();
        let mut in_the_way = HashMap::new();
        for volume in volumes {
            let result = self.0.volumes.discard(volume.clone()).await;
            let VolumeId { tenant, id, generation } = volume;
            match result {
                Ok(Discarded::Gone) if orphans.contains(&id) => {
                    tracing::warn!(%tenant, cache = %id, generation, "a volume without a record was discarded");
                }
                Ok(Discarded::Gone) => tracing::info!(%tenant, cache = %id, generation, "volume discarded"),
                // Of two volumes of one cache the one that is in use says more.
                Ok(Discarded::InUse(used)) => {
                    tracing::debug!(%tenant, cache = %id, generation, "the volume stays: {used}");
                    in_the_way.insert(id, InTheWay::Used);
                }
                Ok(Discarded::Going) => {
                    in_the_way.entry(id).or_insert(InTheWay::Going);
                }
                Err(error) => {
                    tracing::error!(%tenant, cache = %id, generation, %error, "a volume cannot be discarded");
                    in_the_way.insert(id, InTheWay::Used);
                }
            }
        }
        if in_the_way.values().any(|why| *why == InTheWay::Going) {
            let service = self.clone();
            self.0.tasks.spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(SOON) => service.0.sweep.notify_one(),
                    () = service.0.stop.cancelled() => {}
                }
            });
        }
        Ok(in_the_way)
    }

    /// Tells a tenant, once, why a deletion takes its time.
    async fn say_in_use(&self, record: &Record) -> Result<(), StoreError> {
        const MESSAGE: &str = "it is in use: it is deleted when the last user lets go";
        if record.message.as_deref() == Some(MESSAGE) {
            return Ok(());
        }
        let now = self.now();
        self.change(record.id, |record| {
            if record.status != Status::Deleting {
                return false;
            }
            record.message = Some(MESSAGE.to_owned());
            record.note(now, MESSAGE);
            true
        })
        .await?;
        Ok(())
    }

    /// Removes the record of a deleted cache.
    async fn forget(&self, id: CacheId) -> Result<(), StoreError> {
        let Some(stored) = self.0.store.get(id).await? else { return Ok(()) };
        match self.0.store.remove(id, stored.version).await {
            Ok(()) => {
                tracing::info!(cache = %id, tenant = %stored.record.tenant, "deleted");
                self.0.hub.end(id);
                Ok(())
            }
            // Somebody was faster; the next look decides anew.
            Err(StoreError::Changed(_) | StoreError::Gone(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
