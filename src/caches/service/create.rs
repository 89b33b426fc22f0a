//! Creates image caches.

use super::super::error::Error;
use super::super::record::Record;
use super::super::store::{Created, IdempotencyKey, StoreError, Stored};
use super::Service;
use larder_model::image_cache::{CacheId, Spec, TenantName};

impl Service {
    /// Orders an image cache. If the key was used before, returns the record of the first answer.
    ///
    /// # Errors
    /// Fails if the order is invalid or exceeds a limit, or if the records cannot be written.
    pub async fn create(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
    ) -> Result<Record, Error> {
        let (service, tenant) = (self.clone(), tenant.clone());
        self.to_its_end(async move { service.create_now(&tenant, spec, key, None).await }).await
    }

    /// Answers a create that might have been carried out before. It works like [`create`](Service::create),
    /// but orders no new image cache.
    ///
    /// # Errors
    /// Returns [`Error::Replayed`] instead of ordering an image cache, and otherwise fails like
    /// [`create`](Service::create).
    pub async fn create_again(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
    ) -> Result<Record, Error> {
        let (service, owner, order) = (self.clone(), tenant.clone(), spec.clone());
        let replayed = Some(Error::Replayed);
        let answer =
            self.to_its_end(async move { service.create_now(&owner, order, key, replayed).await }).await;
        if matches!(answer, Err(Error::Replayed)) {
            // A client that repeats a refused order within the same second signs both requests identically.
            self.check_queue()?;
            self.would_admit(tenant, &spec).await?;
        }
        answer
    }

    async fn create_now(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
        refusal: Option<Error>,
    ) -> Result<Record, Error> {
        self.check(&spec)?;
        let _one_at_a_time = self.one_at_a_time(tenant).await;
        // The identity is a proposal; the store can replace it.
        let record = Record::new(CacheId::random(), tenant.clone(), spec, self.now());
        match self.place(record, key, refusal).await? {
            Created::New(Stored { record, .. }) => {
                let images = &record.spec.images;
                tracing::info!(tenant = %tenant, cache = %record.id, name = %record.spec.name, ?images, "ordered");
                self.enqueue(tenant, record.id);
                Ok(record)
            }
            Created::Before(record) => Ok(*record),
        }
    }

    /// Writes a new record if there is room and no `refusal`. The caller holds [`Inner::admission`].
    pub(super) async fn place(
        &self,
        record: Record,
        key: Option<IdempotencyKey>,
        refusal: Option<Error>,
    ) -> Result<Created, Error> {
        let refusal = refusal.or_else(|| self.check_queue().err());
        let mut admission = self.admission(Some(&record.tenant))?;
        if refusal.is_some() {
            // No new record is written, but a repeated create still gets its first answer.
            admission.max_per_tenant = 0;
        }
        match (self.0.store.create(record, admission, key).await, refusal) {
            (Err(StoreError::Quota { .. }), Some(refusal)) => Err(refusal),
            (created, _) => Ok(created?),
        }
    }
}
