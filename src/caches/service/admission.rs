//! Admission: decides whether there is room for one more image cache or build.
//!
//! Invariants:
//!
//! - Room is checked and taken under the [lock](Admission::lock). Two requests cannot take the same place in
//!   the queue or the same space.
//! - Space is reserved by a record or promised to an upload, and never by both.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::records::Survey;
use super::settings::Settings;
use super::volumes_failed;
use crate::caches::error::Error;
use crate::caches::queue::Queue;
use crate::caches::record::Record;
use crate::caches::store::{AdmissionDecision, Limits, StoreError, TenantSpace};
use crate::caches::turns::{Kind, Turn, Turns};
use crate::caches::volumes::Volumes;
use larder_model::image_cache::{CacheId, Spec, TenantName};

/// The build queue, and the space for volumes.
#[derive(Debug)]
pub(super) struct Admission {
    settings: Arc<Settings>,
    volumes: Arc<dyn Volumes>,
    turns: Turns,
    queue: Mutex<Queue>,
    /// Notified when the queue or the free builder slots have changed.
    changed: Arc<Notify>,
    promises: Mutex<HashMap<CacheId, (TenantName, u64)>>,
}

/// The right to check and take room. It is held until this is dropped.
#[derive(Debug)]
pub(super) struct AdmissionLock(#[expect(dead_code, reason = "held until it is dropped")] Turn);

impl Admission {
    pub(super) fn new(settings: Arc<Settings>, volumes: Arc<dyn Volumes>) -> Self {
        Admission {
            settings,
            volumes,
            turns: Turns::default(),
            queue: Mutex::default(),
            changed: Arc::default(),
            promises: Mutex::default(),
        }
    }

    /// Waits for the tenant's turn to check and take room. A cancel also takes it, so that it cannot remove
    /// the build of a later request from the queue.
    pub(super) async fn lock(&self, tenant: &TenantName) -> AdmissionLock {
        AdmissionLock(self.turns.take(Kind::Write, Some(tenant.clone())).await)
    }

    /// Decides whether a record of the tenant can be created.
    pub(super) fn decide(
        &self,
        _lock: &AdmissionLock,
        tenant: &TenantName,
    ) -> Result<AdmissionDecision, StoreError> {
        match self.check_queue() {
            Ok(()) => Ok(AdmissionDecision::Open(self.limits(Some(tenant))?)),
            Err(_) => Ok(AdmissionDecision::QueueFull),
        }
    }

    /// Checks whether one more build can be queued. Without the lock, the answer is a prediction.
    pub(super) fn check_queue(&self) -> Result<(), StoreError> {
        let max = self.settings.read(|values| values.caches.queue_length);
        if self.queued() < max { Ok(()) } else { Err(StoreError::QueueFull) }
    }

    /// Returns the limits that a new record of a tenant must fit. With `None` there is no limit on a tenant's
    /// space.
    pub(super) fn limits(&self, tenant: Option<&TenantName>) -> Result<Limits, StoreError> {
        let capacity_gib = self.capacity_gib()?;
        let promises = self.promises();
        let promised = |of: Option<&TenantName>| {
            promises.values().filter(|(tenant, _)| of.is_none_or(|of| of == tenant)).map(|(_, gib)| gib).sum()
        };
        let (max_per_tenant, max_gib) =
            self.settings.read(|values| (values.caches.max_per_tenant, values.caches.max_gib_per_tenant));
        let tenant_space = tenant.map_or(TenantSpace::UNLIMITED, |tenant| TenantSpace {
            max_gib: (max_gib > 0).then_some(max_gib),
            promised_gib: promised(Some(tenant)),
        });
        Ok(Limits { max_per_tenant, tenant_space, capacity_gib, promised_gib: promised(None) })
    }

    /// Returns the GiB that all caches can occupy together.
    pub(super) fn capacity_gib(&self) -> Result<u64, StoreError> {
        let configured = self.settings.read(|values| values.caches.capacity.0);
        if configured > 0 {
            return Ok(configured >> 30);
        }
        self.volumes.capacity_gib().map_err(|e| volumes_failed(&e))
    }

    /// Predicts the store's answer to a create, in the same order of checks
    /// ([`Store::create`](crate::caches::store::Store::create)).
    pub(super) fn would_admit(
        &self,
        tenant: &TenantName,
        spec: &Spec,
        records: &Survey,
    ) -> Result<(), StoreError> {
        let own = records.values().filter(|record| record.tenant == *tenant);
        if own.clone().any(|record| record.spec.name == spec.name) {
            return Err(StoreError::NameTaken(spec.name.clone()));
        }
        let (limits, need_gib) = (self.limits(Some(tenant))?, u64::from(spec.size_gib));
        limits.check_tenant(need_gib, own.clone().count(), reserved_gib(own))?;
        limits.check_host(need_gib, reserved_gib(records.values()))
    }

    /// Checks for room for a refresh, which needs two volumes until the new one replaces the old one.
    pub(super) fn check_refresh(
        &self,
        _lock: &AdmissionLock,
        record: &Record,
        records: &Survey,
    ) -> Result<(), Error> {
        let need_gib = u64::from(record.spec.size_gib);
        match self.check_space(&record.tenant, need_gib, records) {
            Err(StoreError::Full { need_gib, free_gib, capacity_gib }) => {
                Err(Error::NoRoomToRefresh { need_gib, free_gib, capacity_gib })
            }
            checked => Ok(checked?),
        }
    }

    /// Promises space to an upload until its record reserves it.
    pub(super) fn promise(
        self: &Arc<Self>,
        _lock: &AdmissionLock,
        tenant: &TenantName,
        gib: u64,
        records: &Survey,
    ) -> Result<Promise, StoreError> {
        self.check_space(tenant, gib, records)?;
        let id = CacheId::random();
        self.promises().insert(id, (tenant.clone(), gib));
        Ok(Promise { admission: Arc::clone(self), id })
    }

    /// Returns the caches whose archives are being uploaded.
    pub(super) fn uploading(&self) -> HashSet<CacheId> {
        self.promises().keys().copied().collect()
    }

    fn check_space(&self, tenant: &TenantName, need_gib: u64, records: &Survey) -> Result<(), StoreError> {
        let limits = self.limits(Some(tenant))?;
        let own = records.values().filter(|record| record.tenant == *tenant);
        limits.tenant_space.check(need_gib, reserved_gib(own))?;
        limits.check_host(need_gib, reserved_gib(records.values()))
    }

    fn promises(&self) -> MutexGuard<'_, HashMap<CacheId, (TenantName, u64)>> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn promised_gib(&self) -> u64 {
        self.promises().values().map(|(_, gib)| gib).sum()
    }
}

/// The queue. Only identities are queued; the work is in the records.
impl Admission {
    /// Appends the build of a cache to its tenant's line.
    pub(super) fn enqueue(&self, tenant: &TenantName, id: CacheId) {
        self.queue().push(tenant, id);
        self.changed.notify_one();
    }

    /// Removes the build of a cache, if it is queued.
    pub(super) fn dequeue(&self, tenant: &TenantName, id: CacheId) {
        self.queue().remove(tenant, id);
    }

    /// Returns the number of queued builds.
    pub(super) fn queued(&self) -> usize {
        self.queue().len()
    }

    /// Waits for a queued build whose tenant `may` accepts, and removes it.
    pub(super) async fn next_build(&self, may: impl Fn(&TenantName) -> bool) -> (TenantName, CacheId) {
        loop {
            // Register for the wake-up before reading the queue, so that a push in between is not missed.
            let changed = self.changed.notified();
            if let Some(next) = self.queue().pop(&may) {
                return next;
            }
            changed.await;
        }
    }

    /// Returns the notification that makes [`next_build`](Admission::next_build) check the tenants again.
    pub(super) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reserved_gib<'a>(records: impl Iterator<Item = &'a Record>) -> u64 {
    records.map(Record::reserved_gib).sum()
}

/// Space on this host for a cache that has no record yet. Dropping it releases the space.
#[derive(Debug)]
pub(super) struct Promise {
    admission: Arc<Admission>,
    pub(super) id: CacheId,
}

impl Promise {
    /// Releases the space, because the record reserves it from now on. The archive stays protected.
    pub(super) fn hand_over(&self, _lock: &AdmissionLock) {
        if let Some((_, gib)) = self.admission.promises().get_mut(&self.id) {
            *gib = 0;
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.admission.promises().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::caches::layout::Layout;
    use crate::caches::record;
    use crate::caches::volumes::host::HostVolumes;
    use crate::config::Config;

    fn admission(text: &str) -> (TempDir, Arc<Admission>) {
        let dir = tempfile::tempdir().unwrap();
        let volumes = HostVolumes::take(Layout::new(dir.path())).unwrap();
        let settings = Settings::new(&Config::parse(&format!("[caches]\n{text}"), []).unwrap());
        (dir, Arc::new(Admission::new(Arc::new(settings), Arc::new(volumes))))
    }

    fn survey() -> Survey {
        vec![record::tests::record()].into()
    }

    #[tokio::test]
    async fn a_full_queue_is_a_decision() {
        let (_dir, admission) = admission("capacity = \"100GiB\"\nqueue_length = 1\nmax_per_tenant = 7\n");
        let team: TenantName = "team".parse().unwrap();
        let lock = admission.lock(&team).await;
        let open = admission.decide(&lock, &team).unwrap();
        assert!(matches!(open, AdmissionDecision::Open(Limits { max_per_tenant: 7, .. })), "{open:?}");
        let id = CacheId::random();
        admission.enqueue(&team, id);
        let full = admission.decide(&lock, &team).unwrap();
        assert!(matches!(full, AdmissionDecision::QueueFull), "{full:?}");
        admission.dequeue(&team, id);
        assert!(matches!(admission.decide(&lock, &team).unwrap(), AdmissionDecision::Open(_)));
    }

    #[tokio::test]
    async fn promised_space_is_free_again_once() {
        let (_dir, admission) = admission("capacity = \"100GiB\"\nmax_gib_per_tenant = 90\n");
        let team: TenantName = "team".parse().unwrap();
        let lock = admission.lock(&team).await;
        // The record of the survey reserves 20 GiB.
        let promise = admission.promise(&lock, &team, 60, &survey()).unwrap();
        let over = admission.promise(&lock, &team, 11, &survey()).unwrap_err();
        assert!(matches!(over, StoreError::TenantFull { used_gib: 80, .. }), "{over}");
        let other = "other".parse().unwrap();
        let full = admission.promise(&lock, &other, 21, &survey()).unwrap_err();
        assert!(matches!(full, StoreError::Full { free_gib: 20, capacity_gib: 100, .. }), "{full}");
        let spec = Spec { size_gib: 21, name: "db".parse().unwrap(), ..record::tests::record().spec };
        let predicted = admission.would_admit(&other, &spec, &survey()).unwrap_err();
        assert!(matches!(predicted, StoreError::Full { free_gib: 20, .. }), "{predicted}");
        let id = promise.id;
        promise.hand_over(&lock);
        assert_eq!((admission.promised_gib(), admission.uploading()), (0, HashSet::from([id])));
        drop(promise);
        assert!(admission.uploading().is_empty());
    }

    #[tokio::test]
    async fn a_refusal_names_the_first_reason() {
        let (_dir, admission) = admission("capacity = \"10GiB\"\nmax_per_tenant = 1\n");
        let record = record::tests::record();
        let taken = admission.would_admit(&record.tenant, &record.spec, &survey()).unwrap_err();
        assert!(matches!(taken, StoreError::NameTaken(_)), "{taken}");
        let other = Spec { name: "db".parse().unwrap(), ..record.spec.clone() };
        let many = admission.would_admit(&record.tenant, &other, &survey()).unwrap_err();
        assert!(matches!(many, StoreError::Quota { have: 1, max: 1 }), "{many}");
        let full = admission.would_admit(&"b".parse().unwrap(), &other, &survey()).unwrap_err();
        assert!(matches!(full, StoreError::Full { free_gib: 0, .. }), "{full}");
    }

    #[tokio::test]
    async fn a_queued_build_wakes_the_scheduler() {
        let (_dir, admission) = admission("");
        let (team, id) = ("team".parse().unwrap(), CacheId::random());
        let waits = Arc::clone(&admission);
        let next = tokio::spawn(async move { waits.next_build(|_| true).await });
        tokio::task::yield_now().await;
        admission.enqueue(&team, id);
        assert_eq!(next.await.unwrap(), (team, id));
        assert_eq!(admission.queued(), 0);
    }
}
