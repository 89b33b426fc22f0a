//! Checks for room: in the tenant's quota, on the disk, and in the queue.

use super::{RETRY_AFTER, Service};
use crate::caches::error::Error;
use crate::caches::record::Record;
use crate::caches::store::{Admission, StoreError, TenantSpace};
use larder_model::image_cache::{Spec, TenantName};

impl Service {
    /// Returns the limits that a new record of a tenant must fit. With `None` there is no limit on a tenant's
    /// space.
    ///
    /// # Errors
    /// Fails if the capacity of the host cannot be read.
    pub fn admission(&self, tenant: Option<&TenantName>) -> Result<Admission, StoreError> {
        let max_per_tenant = self.settings(|settings| settings.caches.max_per_tenant);
        let capacity_gib = self.capacity_gib().map_err(|error| match error {
            Error::Store(error) => error,
            other => StoreError::Failed { doing: "measuring", reason: other.to_string(), full: false },
        })?;
        Ok(Admission {
            max_per_tenant,
            tenant_space: tenant.map_or(TenantSpace::UNLIMITED, |tenant| self.tenant_space(tenant)),
            capacity_gib: capacity_gib.saturating_sub(self.promised_gib()),
        })
    }

    /// Returns the space that a tenant can use.
    fn tenant_space(&self, tenant: &TenantName) -> TenantSpace {
        let max_gib = self.settings(|settings| settings.caches.max_gib_per_tenant);
        let promised_gib = self.promised().values().filter(|(of, _)| of == tenant).map(|(_, gib)| gib).sum();
        TenantSpace { max_gib: (max_gib > 0).then_some(max_gib), promised_gib }
    }

    /// Checks whether a tenant can use `need_gib` GiB in addition to the existing records.
    pub(super) fn check_tenant_space<'a>(
        &self,
        tenant: &TenantName,
        need_gib: u64,
        records: impl Iterator<Item = &'a Record>,
    ) -> Result<(), StoreError> {
        let own = records.filter(|record| record.tenant == *tenant);
        self.tenant_space(tenant).check(need_gib, own.map(Record::reserved_gib).sum())
    }

    /// Checks whether this daemon can carry out an order at all.
    pub(super) fn check(&self, spec: &Spec) -> Result<(), Error> {
        if !self.ready() {
            return Err(Error::Stopping);
        }
        spec.check()?;
        let known = self
            .settings(|settings| settings.clusters.is_empty() || settings.clusters.contains(&spec.cluster));
        if known { Ok(()) } else { Err(Error::UnknownCluster(spec.cluster.clone())) }
    }

    /// Checks whether one more build can be queued. The caller holds
    /// [`Inner::admission`](super::Inner::admission), so that two requests cannot take the same place.
    pub(super) fn check_queue(&self) -> Result<(), Error> {
        let most = self.settings(|settings| settings.caches.queue_length);
        if self.queue().len() < most { Ok(()) } else { Err(Error::QueueFull { retry_after: RETRY_AFTER }) }
    }

    /// Checks for room for a refresh, which needs two volumes until the new one replaces the old one.
    pub(super) async fn room_to_refresh(&self, record: &Record) -> Result<(), Error> {
        let need_gib = u64::from(record.spec.size_gib);
        let records = self.records().await?;
        self.check_tenant_space(&record.tenant, need_gib, records.values())?;
        let (free_gib, capacity_gib) = self.free_gib(records.values())?;
        if need_gib <= free_gib {
            return Ok(());
        }
        Err(Error::NoRoomToRefresh { need_gib, free_gib, capacity_gib })
    }

    /// Predicts the store's answer to a create, in the same order of checks
    /// ([`Store::create`](crate::caches::store::Store::create)).
    pub(super) async fn would_admit(&self, tenant: &TenantName, spec: &Spec) -> Result<(), Error> {
        let records = self.records().await?;
        let own = records.values().filter(|record| record.tenant == *tenant);
        if own.clone().any(|record| record.spec.name == spec.name) {
            return Err(StoreError::NameTaken(spec.name.clone()).into());
        }
        let (have, max) = (own.count(), self.settings(|settings| settings.caches.max_per_tenant));
        if have >= max {
            return Err(StoreError::Quota { have, max }.into());
        }
        let need_gib = u64::from(spec.size_gib);
        self.check_tenant_space(tenant, need_gib, records.values())?;
        let (free_gib, capacity_gib) = self.free_gib(records.values())?;
        if need_gib > free_gib {
            return Err(StoreError::Full { need_gib, free_gib, capacity_gib }.into());
        }
        Ok(())
    }

    /// Returns the GiB that are neither reserved nor promised, and the total capacity.
    pub(super) fn free_gib<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
    ) -> Result<(u64, u64), Error> {
        let capacity_gib = self.capacity_gib()?;
        let reserved: u64 = records.map(Record::reserved_gib).sum::<u64>() + self.promised_gib();
        Ok((capacity_gib.saturating_sub(reserved), capacity_gib))
    }
}
