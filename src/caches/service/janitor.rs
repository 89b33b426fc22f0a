//! Periodic cleanup: retention, failed records, deletions, missing and unneeded volumes.
//!
//! Invariants:
//!
//! - Nothing expires while the clock is not trusted.
//! - A volume is discarded only after the store was read again and no record needs it.
//! - A record is deleted only after its volumes.

mod presence;
mod previous;
mod recovery;
mod sweep;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;

pub use self::previous::MAX_PREVIOUS;
use super::admission::Admission;
use super::builds::Builds;
use super::records::Records;
use super::settings::Settings;
use super::tasks::Tasks;
use crate::caches::logs;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use crate::caches::volumes::Volumes;
use crate::telemetry::metrics::Metrics;
use larder_model::image_cache::Status;
use larder_sys::clock::Clock;
use larder_sys::clock::guard::{Expiry, SavedClock, TimeGuard};

/// Interval of the cleanup when nothing requests it.
const INTERVAL: Duration = Duration::from_secs(15);
/// Interval at which missing volumes are looked for again. In a cluster this reads each of their snapshots.
const PRESENCE_INTERVAL: TimeDelta = TimeDelta::minutes(1);
/// Interval at which old idempotency keys are deleted. In a cluster this lists them.
const KEYS_INTERVAL: TimeDelta = TimeDelta::minutes(10);
/// Lifetime of an idempotency key, hours.
const KEY_HOURS: i64 = 24;

/// Cleans up. Clones share the same state.
#[derive(Clone, Debug)]
pub(super) struct Janitor(Arc<Inner>);

/// The parts that the cleanup uses.
#[derive(Debug)]
pub(super) struct Uses {
    pub(super) records: Arc<Records>,
    pub(super) admission: Arc<Admission>,
    pub(super) builds: Builds,
    pub(super) settings: Arc<Settings>,
    pub(super) tasks: Tasks,
    pub(super) volumes: Arc<dyn Volumes>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
}

#[derive(Debug)]
struct Inner {
    uses: Uses,
    guard: Mutex<TimeGuard>,
    requested: Notify,
}

impl Janitor {
    /// `last` are the clocks that an earlier daemon saved.
    pub(super) fn new(uses: Uses, last: Option<SavedClock>) -> Self {
        let guard = Mutex::new(TimeGuard::new(&*uses.clock, last));
        Janitor(Arc::new(Inner { uses, guard, requested: Notify::new() }))
    }

    /// Compares the clock with those that the last leader saved.
    pub(super) fn reset_clock(&self, last: Option<SavedClock>) {
        *self.guard() = TimeGuard::new(&*self.0.uses.clock, last);
    }

    /// Requests a cleanup without waiting for it.
    pub(super) fn request(&self) {
        self.0.requested.notify_one();
    }

    /// Runs the cleanup periodically until the daemon stops.
    pub(super) async fn run(self) {
        let Uses { builds, tasks, .. } = &self.0.uses;
        let (mut keys, mut presence) = (self.now(), self.now() + PRESENCE_INTERVAL);
        loop {
            if let Err(error) = self.clean_up().await {
                tracing::error!(%error, "cleanup failed; retrying later");
            }
            if is_due(&mut keys, self.now(), KEYS_INTERVAL) {
                self.forget_keys().await;
            }
            if is_due(&mut presence, self.now(), PRESENCE_INTERVAL)
                && let Err(error) = self.check_missing().await
            {
                tracing::warn!(%error, "cannot look for missing volumes; retrying later");
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.0.requested.notified() => {}
                () = builds.ended() => {}
                () = tasks.stopping() => return,
            }
        }
    }

    /// Runs the cleanup once.
    pub(super) async fn clean_up(&self) -> Result<(), StoreError> {
        let now = self.now();
        let expire = self.can_expire();
        let clock = self.guard().note();
        let saved = self.0.uses.records.save_clock(clock).await;
        let aged = if expire { self.age_all(now).await } else { Ok(()) };
        // The sweep runs even if the rest fails: on a full disk it is what frees space.
        let swept = self.sweep().await;
        saved.and(aged).and(swept)
    }

    async fn forget_keys(&self) {
        let before = self.now() - TimeDelta::hours(KEY_HOURS);
        if let Err(error) = self.0.uses.records.forget_keys(before).await {
            tracing::warn!(%error, "cannot delete old idempotency keys; retrying later");
        }
    }

    async fn age_all(&self, now: DateTime<Utc>) -> Result<(), StoreError> {
        for record in self.0.uses.records.survey().await?.values() {
            self.age(record, now).await?;
        }
        Ok(())
    }

    /// Returns `true` if the clock is trusted.
    fn can_expire(&self) -> bool {
        let Uses { clock, metrics, .. } = &self.0.uses;
        let held = self.guard().check(&**clock) != Expiry::Allowed;
        metrics.expiry_held(held);
        !held
    }

    /// Applies the passage of time to one record.
    async fn age(&self, record: &Record, now: DateTime<Utc>) -> Result<(), StoreError> {
        let (failed, grace) = self.0.uses.settings.read(|values| {
            let caches = &values.caches;
            (
                TimeDelta::hours(i64::from(caches.failed_retention_hours)),
                TimeDelta::minutes(i64::from(caches.expired_grace_minutes)),
            )
        });
        match due(record, now, failed, grace) {
            None => Ok(()),
            Some(Due::Expire) => self.expire(record, now).await,
            Some(Due::Delete(why)) => self.start_deletion(record, now, why).await,
        }
    }

    async fn expire(&self, record: &Record, now: DateTime<Utc>) -> Result<(), StoreError> {
        let Uses { records, builds, .. } = &self.0.uses;
        let message = format!("expired after {} days", record.spec.retention_days);
        let expire = |record: &mut Record| {
            let expires = record.status == Status::Available;
            if expires {
                record.make_unavailable(now, &message);
            }
            expires
        };
        records.change(record.id, expire).await?;
        builds.interrupt(record.id);
        logs::of(record).in_scope(|| tracing::info!("expired"));
        Ok(())
    }

    async fn start_deletion(&self, record: &Record, now: DateTime<Utc>, why: &str) -> Result<(), StoreError> {
        let status = record.status;
        let delete = |record: &mut Record| {
            let unchanged = record.status == status;
            if unchanged {
                record.set_status(Status::Deleting, now, why);
            }
            unchanged
        };
        self.0.uses.records.change(record.id, delete).await?;
        Ok(())
    }

    fn guard(&self) -> MutexGuard<'_, TimeGuard> {
        self.0.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> DateTime<Utc> {
        self.0.uses.clock.now()
    }
}

/// The change that the passage of time requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Expire,
    Delete(&'static str),
}

/// `failed` is the retention of failed caches. `grace` is the time between expiry and deletion.
fn due(record: &Record, now: DateTime<Utc>, failed: TimeDelta, grace: TimeDelta) -> Option<Due> {
    let expired = record.is_expired(now);
    let age = now - record.status_since;
    match record.status {
        Status::Available if expired => Some(Due::Expire),
        Status::Unavailable if expired && age >= grace => Some(Due::Delete("the retention has ended")),
        Status::Failed if age >= failed => Some(Due::Delete("the retention of failed caches has ended")),
        _ => None,
    }
}

/// Returns `true` if `next` has passed, and moves it to one `interval` from now.
fn is_due(next: &mut DateTime<Utc>, now: DateTime<Utc>, interval: TimeDelta) -> bool {
    let due = now >= *next;
    if due {
        *next = now + interval;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caches::record;

    #[test]
    fn records_age_by_status() {
        let (failed, grace) = (TimeDelta::hours(24), TimeDelta::hours(1));
        let day = DateTime::UNIX_EPOCH + TimeDelta::days(1);
        let second = TimeDelta::seconds(1);
        let mut record = record::tests::record();
        let due = |record: &Record, now| due(record, now, failed, grace);
        assert_eq!(due(&record, day + grace), None, "a build is not interrupted");
        record.set_status(Status::Available, DateTime::UNIX_EPOCH, "sealed");
        assert_eq!((due(&record, day - second), due(&record, day)), (None, Some(Due::Expire)));
        record.make_unavailable(day, "expired");
        assert_eq!(due(&record, day + grace - second), None);
        assert_eq!(due(&record, day + grace), Some(Due::Delete("the retention has ended")));
        record.set_status(Status::Failed, day, "no such tag");
        assert_eq!(due(&record, day + failed - second), None);
        assert_eq!(due(&record, day + failed), Some(Due::Delete("the retention of failed caches has ended")));
        record.spec.retention_days = 0;
        record.make_unavailable(day, "missing");
        assert_eq!(due(&record, day + failed), None, "a missing volume does not expire");
    }
}
