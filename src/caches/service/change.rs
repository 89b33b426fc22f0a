//! Deletes, cancels and refreshes image caches.

use super::Service;
use crate::caches::error::Error;
use crate::caches::record::Record;
use larder_model::class::Class;
use larder_model::image_cache::{CacheId, Status, TenantName};

impl Service {
    /// Deletes a cache. Its status is Deleting until its build has stopped and its volume is no longer in
    /// use.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if the tenant has no such cache.
    pub async fn delete(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        self.complete(tenant, move |service, tenant| async move {
            service.records().get_of(&tenant, id).await?;
            let now = service.now();
            let delete = |record: &mut Record| {
                let exists = record.status != Status::Deleting;
                if exists {
                    record.clear_message();
                    record.set_status(Status::Deleting, now, "deletion requested");
                }
                exists
            };
            let record = service.records().change(id, delete).await?.ok_or(Error::NotFound(id))?;
            service.end_build(&tenant, id);
            Ok(record)
        })
        .await
    }

    /// Cancels the build or the refresh of a cache.
    ///
    /// # Errors
    /// Returns [`Error::NotCancellable`] if nothing is being built.
    pub async fn cancel(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        self.complete(tenant, move |service, tenant| async move {
            let _lock = service.admission().lock(&tenant).await;
            service.records().get_of(&tenant, id).await?;
            let now = service.now();
            let mut was_building = false;
            let cancel = |record: &mut Record| {
                was_building = record.wants_build();
                if was_building {
                    record.fail_build(now, Class::Cancelled, "cancelled by request");
                }
                was_building
            };
            let record = service.records().change(id, cancel).await?.ok_or(Error::NotFound(id))?;
            if !was_building {
                return Err(Error::NotCancellable { id, status: record.status });
            }
            service.end_build(&tenant, id);
            Ok(record)
        })
        .await
    }

    /// Resolves the tags of a cache again and builds a new volume next to the current one. The current volume
    /// is served until the new one replaces it.
    ///
    /// # Errors
    /// Fails if the cache is not available, was imported, or if there is no room for a second volume.
    pub async fn refresh(&self, tenant: &TenantName, id: CacheId) -> Result<Record, Error> {
        self.complete(tenant, move |service, tenant| async move {
            if !service.ready() {
                return Err(Error::Stopping);
            }
            let lock = service.admission().lock(&tenant).await;
            let before = service.records().get_of(&tenant, id).await?;
            if before.import.is_some() {
                return Err(Error::Imported(id));
            }
            if !can_refresh(&before) {
                return Err(not_refreshable(&before));
            }
            service.admission().check_queue()?;
            let all = service.records().survey().await?;
            service.admission().check_refresh(&lock, &before, &all)?;
            let now = service.now();
            let mut started = false;
            let start = |record: &mut Record| {
                started = can_refresh(record);
                if started {
                    record.start_refresh(now);
                }
                started
            };
            let record = service.records().change(id, start).await?.ok_or(Error::NotFound(id))?;
            if !started {
                return Err(not_refreshable(&record));
            }
            service.admission().enqueue(&tenant, id);
            Ok(record)
        })
        .await
    }

    /// Removes a build from the queue, or stops its builder.
    fn end_build(&self, tenant: &TenantName, id: CacheId) {
        self.admission().dequeue(tenant, id);
        self.0.builds.interrupt(id);
        self.0.janitor.request();
    }
}

fn can_refresh(record: &Record) -> bool {
    record.status == Status::Available && record.work.is_none()
}

fn not_refreshable(record: &Record) -> Error {
    Error::NotRefreshable { id: record.id, status: record.status, busy: record.is_refreshing() }
}
