//! Deletes, cancels and refreshes image caches.

use super::super::error::Error;
use super::super::record::{Record, Work};
use super::{Service, build};
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Status, TenantName};

impl Service {
    /// Deletes a cache. Its status is Deleting until its build has stopped and its volume is no longer in
    /// use.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn delete(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.delete_now(&tenant, id).await }).await
    }

    async fn delete_now(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        self.stored(tenant, id).await?;
        let now = self.now();
        let deleted = self.change(id, |record| {
            if record.status == Status::Deleting {
                return false;
            }
            record.message = None;
            record.turn(Status::Deleting, now, "deletion requested");
            true
        });
        let record = deleted.await?.ok_or(Error::NotFound(id))?;
        self.queue().remove(tenant, id);
        self.interrupt(id);
        self.0.sweep.notify_one();
        Ok(record)
    }

    /// Cancels the build or the refresh of a cache.
    ///
    /// # Errors
    /// Returns [`Error::NotCancellable`] if nothing is being built.
    pub async fn cancel(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.cancel_now(&tenant, id).await }).await
    }

    async fn cancel_now(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let _one_at_a_time = self.one_at_a_time(tenant).await;
        self.stored(tenant, id).await?;
        let now = self.now();
        let mut was_building = false;
        let cancelled = self.change(id, |record| {
            was_building = record.work.is_some() && record.status != Status::Deleting;
            if was_building {
                build::give_up(record, now, Class::Cancelled, "cancelled by request");
            }
            was_building
        });
        let record = cancelled.await?.ok_or(Error::NotFound(id))?;
        if !was_building {
            return Err(Error::NotCancellable { id, status: record.status });
        }
        self.queue().remove(tenant, id);
        self.interrupt(id);
        self.0.sweep.notify_one();
        Ok(record)
    }

    /// Resolves the tags of a cache again and builds a new volume next to the current one. The current volume
    /// is served until the new one replaces it.
    ///
    /// # Errors
    /// Fails if the cache is not available, was imported, or if there is no room for a second volume.
    pub async fn refresh(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.refresh_now(&tenant, id).await }).await
    }

    async fn refresh_now(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        if !self.ready() {
            return Err(Error::Stopping);
        }
        let _one_at_a_time = self.one_at_a_time(tenant).await;
        let before = self.get(tenant, id).await?;
        if before.import.is_some() {
            return Err(Error::Imported(id));
        }
        let refuse = |record: &Record| Error::NotRefreshable {
            id,
            status: record.status,
            busy: record.is_refreshing(),
        };
        if before.status != Status::Available || before.is_refreshing() {
            return Err(refuse(&before));
        }
        self.check_queue()?;
        self.room_to_refresh(&before).await?;
        let now = self.now();
        let mut begun = false;
        let changed = self.change(id, |record| {
            begun = record.status == Status::Available && record.work.is_none();
            if !begun {
                return false;
            }
            record.generation += 1;
            record.work = Some(Work::new(record.generation));
            record.message = None;
            record.class = None;
            record.note(now, "refresh requested");
            true
        });
        let record = changed.await?.ok_or(Error::NotFound(id))?;
        if !begun {
            return Err(refuse(&record));
        }
        self.enqueue(tenant, id);
        Ok(record)
    }
}
