//! Adoption of image caches that were created with kubectl.

use chrono::{DateTime, Utc};
use kube::ResourceExt as _;

use super::super::convert;
use super::super::crd::ImageCache;
use super::super::fault::{opt, request};
use super::super::names::NONCE;
use super::super::upkeep::schedule;
use super::objects::{corrupt, write_parameters};
use super::{KubeStore, admission, annotation};
use crate::caches::logs;
use crate::caches::record::{Record, RequestOrigin};
use crate::caches::store::{Limits, StoreError};
use larder_model::image_cache::{Spec, TenantName};

impl KubeStore {
    /// Adopts an object that was created without the API, with the same checks as a create: name, quota and
    /// capacity. If a check fails, the image cache becomes `Failed`, with the reason.
    ///
    /// # Errors
    /// A request failed, or Larder did not write the status of an object.
    pub async fn adopt(
        &self,
        namespace_of: &str,
        name: &str,
        limits: Limits,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.admission.run(Box::pin(self.adopt_alone(namespace_of, name, limits, now))).await
    }

    /// Adopts an object while no other request is admitted.
    async fn adopt_alone(
        &self,
        namespace_of: &str,
        name: &str,
        limits: Limits,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let api = self.objects.api(namespace_of);
        let doing = format!("reading the image cache {namespace_of}/{name}");
        let Some(object) = opt(request!(&doing, api.get(name)))? else { return Ok(()) };
        if object.status.is_some() || object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (spec, tenant) = match self.order_of(&object) {
            Ok(order) => order,
            Err(reason) => return self.refuse(object, &reason, now).await,
        };
        let id = convert::id(&object.metadata).ok_or_else(|| corrupt(&object, "it has no UID".to_owned()))?;
        let mut record = Record::new(id, tenant, spec, convert::created(&object.metadata));
        record.ordered_by = RequestOrigin::Cluster;
        let own = self.objects.list(Some(namespace_of)).await?;
        let have = own.iter().filter(|other| other.status.is_some()).count();
        match admission::check(&self.objects, &limits, &record, (&own, have), true).await {
            Ok(()) => {}
            Err(
                refused
                @ (StoreError::Quota { .. } | StoreError::TenantFull { .. } | StoreError::Full { .. }),
            ) => {
                record.fail_build(now, refused.class(), &refused.to_string());
                self.objects.put(object, record).await?;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        // The finalizer is set before anything is created, so that nothing can be left behind.
        self.objects.add_finalizer(&object).await?;
        let Some(object) = opt(request!(&doing, api.get(name)))? else { return Ok(()) };
        if convert::id(&object.metadata) == Some(id) && object.status.is_none() {
            logs::of(&record).in_scope(|| tracing::info!("image cache requested by an object"));
            self.objects.put(object, record).await?;
        }
        Ok(())
    }

    /// Returns the order of an object and its tenant, or the reason to refuse it.
    fn order_of(&self, object: &ImageCache) -> Result<(Spec, TenantName), String> {
        let spec = convert::spec(&object.metadata, &object.spec, self.cluster())?;
        let tenant = object.namespace().unwrap_or_default();
        let tenant = tenant.parse::<TenantName>().map_err(|e| format!("metadata.namespace: {e}"))?;
        if spec.cluster != self.cluster() {
            return Err(format!("spec.cluster: {:?} refers to another cluster", spec.cluster));
        }
        let mistake = convert::mistake(&spec).or_else(|| schedule::mistake(&object.spec));
        // A create of the API has checked an object with a nonce.
        match mistake.filter(|_| annotation(object, NONCE).is_none()) {
            Some(reason) => Err(reason),
            None => Ok((spec, tenant)),
        }
    }

    async fn refuse(
        &self,
        mut object: ImageCache,
        reason: &str,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        tracing::info!(namespace, name, "image cache refused: {reason}");
        object.status = Some(convert::refusal(reason, object.metadata.generation, now));
        object.metadata.managed_fields = None;
        let api = self.objects.api(&namespace);
        let doing = format!("writing the status of the image cache {namespace}/{name}");
        match request!(&doing, api.replace_status(&name, &write_parameters(), &object)) {
            // If another writer was faster, the watch delivers the object again.
            Err(fault) if !fault.is_conflict() && !fault.is_not_found() => Err(fault.into()),
            _ => Ok(()),
        }
    }
}
