//! Periodic cleanup: retention, failed records, deletions, unneeded volumes.

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

/// Interval of the cleanup when nothing requests it.
const INTERVAL: Duration = Duration::from_secs(15);
/// Delay before the next cleanup while a volume is being removed.
const RECHECK_DELAY: Duration = Duration::from_secs(1);
/// Interval at which old idempotency keys are deleted. In a cluster this lists them.
const KEYS_INTERVAL: TimeDelta = TimeDelta::minutes(10);
/// Lifetime of an idempotency key, hours.
const KEY_HOURS: i64 = 24;

/// The reason why a volume is not removed yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocker {
    Used,
    Going,
}

impl Service {
    /// Runs the cleanup periodically until the daemon stops.
    pub(super) async fn run_janitor(self) {
        let mut keys = self.now();
        loop {
            if let Err(error) = self.clean_up().await {
                tracing::error!(%error, "cleanup failed; retrying later");
            }
            if self.now() >= keys {
                keys = self.now() + KEYS_INTERVAL;
                let before = self.now() - TimeDelta::hours(KEY_HOURS);
                if let Err(error) = self.0.store.forget_keys(before).await {
                    tracing::warn!(%error, "cannot delete old idempotency keys; retrying later");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.0.sweep.notified() => {}
                () = self.0.stop.cancelled() => return,
            }
        }
    }

    /// Runs the cleanup once.
    pub(super) async fn clean_up(&self) -> Result<(), StoreError> {
        let now = self.now();
        let expire = self.may_expire();
        let noted = self.guard().note();
        let noted = self.0.store.note(noted).await;
        let aged = if expire { self.age_all(now).await } else { Ok(()) };
        // The sweep runs even if the rest fails: on a full disk it is what frees space.
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

    /// Returns `true` if the clock is trusted.
    fn may_expire(&self) -> bool {
        let held = self.guard().check(&*self.0.clock) != Expiry::Allowed;
        self.0.metrics.expiry_held(held);
        !held
    }

    /// Applies the passage of time to one record.
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
                    // The refresh is dropped, because its result would be discarded.
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
                self.start_deletion(record, now, "the retention has ended").await?
            }
            Status::Failed if age >= failed => {
                self.start_deletion(record, now, "the retention of failed caches has ended").await?;
            }
            _ => {}
        }
        Ok(())
    }

    async fn start_deletion(&self, record: &Record, now: DateTime<Utc>, why: &str) -> Result<(), StoreError> {
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

    /// Discards every volume and archive that no record needs, and deletes the records of deleted caches
    /// without volumes.
    pub(super) async fn sweep(&self) -> Result<(), StoreError> {
        // List volumes before reading records, so that the list has no volume created after its record was
        // read.
        let mut volumes = self.0.volumes.list().await.map_err(|e| state_failed(&e))?;
        let archives = self.archives().await?;
        // Read the promises before the records: an upload has its promise until its record exists.
        let promised: HashSet<CacheId> = self.promised().keys().copied().collect();
        // Read the builders before the records: a builder that has ended has updated its record.
        let building: HashSet<CacheId> = self.live().keys().copied().collect();
        let records = self.records().await?;
        // A record is deleted after its volumes, so the list must contain all of them.
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
        let blockers = self.discard(unneeded, &records).await?;
        self.0.volumes.tidy(discarded);
        let done =
            |id: &CacheId| !promised.contains(id) && records.get(id).is_none_or(|r| !r.needs_archive());
        self.remove_archives(archives.into_iter().filter(done).collect()).await?;
        for record in records.values() {
            let id = record.id;
            if record.status != Status::Deleting || building.contains(&id) {
                continue;
            }
            match blockers.get(&id) {
                Some(Blocker::Used) => self.record_in_use(record).await?,
                Some(_) => {}
                None => self.forget(id).await?,
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

    /// Discards volumes and returns the caches that still have one, with the reason.
    async fn discard(
        &self,
        volumes: Vec<VolumeId>,
        records: &Records,
    ) -> Result<HashMap<CacheId, Blocker>, StoreError> {
        let orphans: Vec<CacheId> =
            volumes.iter().map(|volume| volume.id).filter(|id| records.get(id).is_none()).collect();
        let mut blockers = HashMap::new();
        for volume in volumes {
            let result = self.0.volumes.discard(volume.clone()).await;
            let VolumeId { tenant, id, generation } = volume;
            match result {
                Ok(Discarded::Gone) if orphans.contains(&id) => {
                    tracing::warn!(%tenant, cache = %id, generation, "discarded a volume without a record");
                }
                Ok(Discarded::Gone) => tracing::info!(%tenant, cache = %id, generation, "volume discarded"),
                // If a cache has two such volumes, report the one in use.
                Ok(Discarded::InUse(used)) => {
                    tracing::debug!(%tenant, cache = %id, generation, "keeping the volume: {used}");
                    blockers.insert(id, Blocker::Used);
                }
                Ok(Discarded::Going) => {
                    blockers.entry(id).or_insert(Blocker::Going);
                }
                Err(error) => {
                    tracing::error!(%tenant, cache = %id, generation, %error, "cannot discard a volume");
                    blockers.insert(id, Blocker::Used);
                }
            }
        }
        if blockers.values().any(|why| *why == Blocker::Going) {
            let service = self.clone();
            self.0.tasks.spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(RECHECK_DELAY) => service.0.sweep.notify_one(),
                    () = service.0.stop.cancelled() => {}
                }
            });
        }
        Ok(blockers)
    }

    /// Records once, for the tenant, why a deletion is delayed.
    async fn record_in_use(&self, record: &Record) -> Result<(), StoreError> {
        const MESSAGE: &str = "the volume is in use: it is deleted when its last user releases it";
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

    /// Deletes the record of a deleted cache.
    async fn forget(&self, id: CacheId) -> Result<(), StoreError> {
        let Some(stored) = self.0.store.get(id).await? else { return Ok(()) };
        match self.0.store.remove(id, stored.version).await {
            Ok(()) => {
                tracing::info!(cache = %id, tenant = %stored.record.tenant, "deleted");
                self.0.hub.end(id);
                Ok(())
            }
            // A concurrent change won; the next cleanup checks again.
            Err(StoreError::Changed(_) | StoreError::Gone(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }
}
