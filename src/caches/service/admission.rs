//! Whether there is room: for a cache of the tenant, on the disk, in the queue.

use super::{RETRY_AFTER, Service};
use crate::caches::error::Error;
use crate::caches::record::Record;
use crate::caches::store::StoreError;
use crate::model::image_cache::{Spec, TenantName};

impl Service {
    /// Whether an order can be carried out here at all.
    pub(super) fn check(&self, spec: &Spec) -> Result<(), Error> {
        if !self.ready() {
            return Err(Error::Stopping);
        }
        spec.check()?;
        let known = self
            .settings(|settings| settings.clusters.is_empty() || settings.clusters.contains(&spec.cluster));
        if known { Ok(()) } else { Err(Error::UnknownCluster(spec.cluster.clone())) }
    }

    /// Whether one more build may wait. Who asks holds [`Inner::admission`](super::Inner::admission), so that no two take
    /// the same place.
    pub(super) fn check_queue(&self) -> Result<(), Error> {
        let most = self.settings(|settings| settings.caches.queue_length);
        if self.queue().len() < most { Ok(()) } else { Err(Error::QueueFull { retry_after: RETRY_AFTER }) }
    }

    /// A refresh holds two volumes until the new one is in its place.
    pub(super) async fn room_to_refresh(&self, record: &Record) -> Result<(), Error> {
        let need_gib = u64::from(record.spec.size_gib);
        let (free_gib, capacity_gib) = self.free_gib(self.records().await?.values())?;
        if need_gib <= free_gib {
            return Ok(());
        }
        Err(Error::NoRoomToRefresh { need_gib, free_gib, capacity_gib })
    }

    /// What the store would say to a create, in its order ([`Store::create`](crate::caches::store::Store::create)).
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
        let (free_gib, capacity_gib) = self.free_gib(records.values())?;
        if need_gib > free_gib {
            return Err(StoreError::Full { need_gib, free_gib, capacity_gib }.into());
        }
        Ok(())
    }

    /// GiB that no record has reserved and that are promised to none, and those that there are in all.
    pub(super) fn free_gib<'a>(
        &self,
        records: impl Iterator<Item = &'a Record>,
    ) -> Result<(u64, u64), Error> {
        let capacity_gib = self.capacity_gib()?;
        let reserved: u64 = records.map(Record::reserved_gib).sum::<u64>() + self.promised_gib();
        Ok((capacity_gib.saturating_sub(reserved), capacity_gib))
    }
}
