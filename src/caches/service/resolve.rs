//! Resolves tags before a build, for decisions that depend on them. A confined process contacts the
//! registries, as for a plan.

use super::Service;
use crate::caches::error::Error;
use crate::caches::record::RequestOrigin;
use larder_model::image_cache::{CacheId, Spec, TenantName};
use larder_model::plan_report::PlanReport;

impl Service {
    /// Resolves the images of a cache with the credentials that its next build would use. Downloads no
    /// layers.
    ///
    /// # Errors
    /// Returns [`Error::Plan`] with the failures of the images, [`Error::NotFound`], or a failure of the
    /// records.
    pub async fn resolve(&self, tenant: &TenantName, id: CacheId) -> Result<PlanReport, Error> {
        let record = self.get(tenant, id).await?;
        self.resolve_spec(tenant, record.ordered_by, &record.spec).await
    }

    /// Resolves the images of an order without placing it. Quota and capacity are not checked.
    ///
    /// # Errors
    /// Returns [`Error::Plan`] with the failures of the images, or an error about the order.
    pub async fn resolve_spec(
        &self,
        tenant: &TenantName,
        ordered_by: RequestOrigin,
        spec: &Spec,
    ) -> Result<PlanReport, Error> {
        self.check(spec)?;
        self.0.builds.plan(tenant, ordered_by, spec).await
    }

    /// Checks whether a new cache of the tenant fits into quota and capacity now.
    ///
    /// # Errors
    /// Returns the error that a create would return.
    pub async fn has_room(&self, tenant: &TenantName, spec: &Spec) -> Result<(), Error> {
        self.would_admit(tenant, spec).await
    }
}
