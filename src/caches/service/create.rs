//! Creates image caches.

use super::Service;
use super::admission::AdmissionLock;
use crate::caches::error::Error;
use crate::caches::logs;
use crate::caches::record::Record;
use crate::caches::store::{AdmissionDecision, Created, IdempotencyKey, StoreError, Stored};
use crate::telemetry::List;
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
        self.create_unless(tenant, spec, key, None).await
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
        let refused = Some(AdmissionDecision::Replayed);
        let answer = self.create_unless(tenant, spec.clone(), key, refused).await;
        if matches!(answer, Err(Error::Replayed)) {
            // A client that repeats a refused order within the same second signs both requests identically.
            self.admission().check_queue()?;
            self.would_admit(tenant, &spec).await?;
        }
        answer
    }

    /// Creates a record, unless it is `refused`.
    async fn create_unless(
        &self,
        tenant: &TenantName,
        spec: Spec,
        key: Option<IdempotencyKey>,
        refused: Option<AdmissionDecision>,
    ) -> Result<Record, Error> {
        self.complete(tenant, move |service, tenant| async move {
            service.check(&spec)?;
            let lock = service.admission().lock(&tenant).await;
            // The identity is a proposal; the store can replace it.
            let record = Record::new(CacheId::random(), tenant.clone(), spec, service.now());
            let decision = match refused {
                Some(refused) => refused,
                None => service.admission().decide(&lock, &tenant)?,
            };
            match service.place(&lock, record, decision, key).await? {
                Created::New(Stored { record, .. }) => {
                    let images = &record.spec.images;
                    logs::of(&record).in_scope(|| tracing::info!(images = %List(images), "ordered"));
                    Ok(record)
                }
                Created::Before(record) => Ok(*record),
            }
        })
        .await
    }

    /// Writes a new record and queues its build.
    pub(super) async fn place(
        &self,
        _lock: &AdmissionLock,
        record: Record,
        decision: AdmissionDecision,
        key: Option<IdempotencyKey>,
    ) -> Result<Created, StoreError> {
        let created = self.records().create(record, decision, key).await?;
        if let Created::New(Stored { record, .. }) = &created {
            self.admission().enqueue(&record.tenant, record.id);
        }
        Ok(created)
    }
}
