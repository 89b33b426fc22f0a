//! Adoption of image caches that were created with kubectl.

use super::super::convert;
use super::super::crd::ImageCache;
use super::super::fault::{opt, request};
use super::super::names::{FINALIZER, NONCE};
use super::super::upkeep::schedule;
use super::{KubeStore, annotation, corrupt, post_parameters};
use crate::caches::record::{Record, RequestOrigin};
use crate::caches::store::{Limits, StoreError};
use crate::caches::volumes::UNLIMITED;
use chrono::{DateTime, Utc};
use kube::ResourceExt as _;
use larder_model::image_cache::TenantName;
use serde_json::json;

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
        let _turn = self.turn.lock().await;
        self.turn().await?;
        let adopted = self.try_adopt(namespace_of, name, limits, now).await;
        if let Err(fault) = self.admission.release().await {
            tracing::debug!("{fault}");
        }
        adopted
    }

    async fn try_adopt(
        &self,
        namespace_of: &str,
        name: &str,
        limits: Limits,
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let api = self.of(namespace_of);
        let doing = format!("reading the image cache {namespace_of}/{name}");
        let Some(object) = opt(request!(&doing, api.get(name)))? else { return Ok(()) };
        if object.status.is_some() || object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let spec = convert::spec(&object.metadata, &object.spec, &self.cluster);
        let tenant = namespace_of.parse::<TenantName>().map_err(|e| format!("metadata.namespace: {e}"));
        let (spec, tenant) = match (spec, tenant) {
            (Ok(spec), Ok(tenant)) if spec.cluster == self.cluster => {
                let mistake = convert::mistake(&spec).or_else(|| schedule::mistake(&object.spec));
                match mistake.filter(|_| annotation(&object, NONCE).is_none()) {
                    None => (spec, tenant),
                    Some(reason) => return self.refuse(object, &reason, now).await,
                }
            }
            (Ok(spec), Ok(_)) => {
                let reason = format!("spec.cluster: {:?} refers to another cluster", spec.cluster);
                return self.refuse(object, &reason, now).await;
            }
            (Err(reason), _) | (_, Err(reason)) => return self.refuse(object, &reason, now).await,
        };
        let id = convert::id(&object.metadata).ok_or_else(|| corrupt(&object, "it has no UID".to_owned()))?;
        let mut record = Record::new(id, tenant, spec, convert::created(&object.metadata));
        record.ordered_by = RequestOrigin::Cluster;
        let own = self.objects(Some(namespace_of)).await?;
        let have = own.iter().filter(|other| other.status.is_some()).count();
        let need_gib = record.reserved_gib();
        // The objects of the tenant and of the cluster already include this one.
        let others = self.reserved_by(&own)?.saturating_sub(need_gib);
        let mut fits = limits.check_tenant(need_gib, have, others);
        if fits.is_ok() && limits.capacity_gib < UNLIMITED {
            fits = limits.check_host(need_gib, self.reserved_gib().await?.saturating_sub(need_gib));
        }
        if let Err(refused) = fits {
            record.fail_build(now, refused.class(), &refused.to_string());
            self.put(object, record).await?;
            return Ok(());
        }
        // The finalizer is set before anything is created, so that nothing can be left behind.
        if !object.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
            let finalizers: Vec<&str> =
                object.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
            self.set_finalizers(&object, json!(finalizers)).await?;
        }
        let Some(object) = opt(request!(&doing, api.get(name)))? else { return Ok(()) };
        if convert::id(&object.metadata) == Some(id) && object.status.is_none() {
            tracing::info!(tenant = %record.tenant, cache = %id, name, "image cache requested by an object");
            self.put(object, record).await?;
        }
        Ok(())
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
        let api = self.of(&namespace);
        let doing = format!("writing the status of the image cache {namespace}/{name}");
        match request!(&doing, api.replace_status(&name, &post_parameters(), &object)) {
            // If another writer was faster, the watch delivers the object again.
            Err(fault) if !fault.is_conflict() && !fault.is_not_found() => Err(fault.into()),
            _ => Ok(()),
        }
    }
}
