//! Creation of image caches, one at a time.

use super::super::convert;
use super::super::crd::ImageCache;
use super::super::fault::{Fault, opt, request};
use super::super::lease::LeaseAttempt;
use super::super::names::{KEY, NONCE, REQUEST, namespace};
use super::{ADMISSION_POLL, KubeStore, REPAIR_WINDOW, annotation, corrupt, keys, post_parameters};
use crate::caches::record::Record;
use crate::caches::store::{Admission, Created, IdempotencyKey, StoreError, Stored};
use crate::caches::volumes::UNLIMITED;
use kube::ResourceExt as _;
use larder_model::digest::hex;
use larder_model::image_cache::Spec;

impl KubeStore {
    pub(super) async fn create(
        &self,
        record: Record,
        admission: Admission,
        key: Option<IdempotencyKey>,
    ) -> Result<Created, StoreError> {
        let _turn = self.turn.lock().await;
        self.turn().await?;
        let created = self.admit(record, admission, key).await;
        // Release the lease now, so that the next daemon does not wait for its expiry.
        if let Err(fault) = self.admission.release().await {
            tracing::debug!("{fault}");
        }
        created
    }

    pub(super) async fn admit(
        &self,
        record: Record,
        admission: Admission,
        key: Option<IdempotencyKey>,
    ) -> Result<Created, StoreError> {
        let tenant = &record.tenant;
        let hash = key.as_ref().map(|key| keys::hash(tenant, &key.key));
        if let (Some(key), Some(hash)) = (&key, &hash)
            && let Some(answer) = self.keys.find(tenant, hash).await?
        {
            return answer.of(key).map(|record| Created::Before(Box::new(record)));
        }
        let own = self.objects(Some(namespace(tenant))).await?;
        // A daemon may have stopped between writing the record and the key.
        if let (Some(key), Some(hash)) = (&key, &hash)
            && let Some(object) = own.iter().find(|object| {
                annotation(object, KEY) == Some(hash)
                    && record.created_at - convert::created(&object.metadata) < REPAIR_WINDOW
            })
        {
            // Anyone who can write objects can forge the annotation: the spec must match the request as well.
            let spec = convert::spec(&object.metadata, &object.spec, &self.cluster);
            let same = spec
                .is_ok_and(|spec| Spec { retention_days: record.spec.retention_days, ..spec } == record.spec);
            if !same || annotation(object, REQUEST) != Some(&hex(&key.request)) {
                return Err(StoreError::KeyReused);
            }
            let stored = self.init_status(object.clone(), &record).await?;
            let first = Record::new(
                stored.record.id,
                stored.record.tenant,
                stored.record.spec,
                stored.record.created_at,
            );
            self.keys.keep(hash, key, &first).await?;
            return Ok(Created::Before(Box::new(first)));
        }
        if own.iter().any(|object| object.name_any() == record.spec.name.as_str()) {
            return Err(StoreError::NameTaken(record.spec.name));
        }
        if own.len() >= admission.max_per_tenant {
            return Err(StoreError::Quota { have: own.len(), max: admission.max_per_tenant });
        }
        let need_gib = record.reserved_gib();
        admission.tenant_space.check(need_gib, self.reserved_by(&own)?)?;
        let capacity_gib = admission.capacity_gib;
        if capacity_gib < UNLIMITED {
            let free_gib = capacity_gib.saturating_sub(self.reserved_gib().await?);
            if need_gib > free_gib {
                return Err(StoreError::Full { need_gib, free_gib, capacity_gib });
            }
        }
        let mut object = convert::object(&record, &self.cluster);
        let annotations = object.annotations_mut();
        annotations.insert(NONCE.to_owned(), record.id.to_string());
        if let (Some(key), Some(hash)) = (&key, &hash) {
            annotations.insert(KEY.to_owned(), hash.clone());
            annotations.insert(REQUEST.to_owned(), hex(&key.request));
        }
        let object = self.post(&record, object, own.len()).await?;
        let stored = self.init_status(object, &record).await?;
        if let (Some(key), Some(hash)) = (&key, &hash) {
            self.keys.keep(hash, key, &stored.record).await?;
        }
        Ok(Created::New(stored))
    }

    /// Returns the GiB that all records reserve, including objects that are not adopted yet.
    pub(super) async fn reserved_gib(&self) -> Result<u64, StoreError> {
        self.reserved_by(&self.objects(None).await?)
    }

    /// Returns the GiB that the records of `objects` reserve.
    pub(super) fn reserved_by(&self, objects: &[ImageCache]) -> Result<u64, StoreError> {
        let mut reserved = 0;
        for object in objects {
            reserved += match self.read(object)? {
                Some(stored) => stored.record.reserved_gib(),
                None if object.status.is_none() => u64::from(object.spec.image_cache_size),
                None => 0,
            };
        }
        Ok(reserved)
    }

    /// Creates the object of a request.
    pub(super) async fn post(
        &self,
        record: &Record,
        object: ImageCache,
        have: usize,
    ) -> Result<ImageCache, StoreError> {
        let api = self.of(namespace(&record.tenant));
        let name = record.spec.name.as_str();
        let doing = format!("creating the image cache {}/{name}", record.tenant);
        match request!(&doing, api.create(&post_parameters(), &object)) {
            Ok(object) => Ok(object),
            Err(fault) if fault.already_exists() => {
                // This request created it, if an earlier attempt succeeded and its response was lost.
                let present = opt(request!(&doing, api.get(name)))?;
                present
                    .filter(|present| annotation(present, NONCE) == Some(&record.id.to_string()))
                    .ok_or_else(|| StoreError::NameTaken(record.spec.name.clone()))
            }
            Err(fault) if fault.is_quota() => Err(StoreError::Quota { have, max: have }),
            Err(fault) if fault.is_not_found() => Err(StoreError::NoNamespace(record.tenant.clone())),
            Err(fault) => Err(fault.into()),
        }
    }

    /// Writes the first status of an object, from the record of a new request.
    pub(super) async fn init_status(
        &self,
        object: ImageCache,
        record: &Record,
    ) -> Result<Stored, StoreError> {
        self.index(&object);
        if let Some(stored) = self.read(&object)? {
            return Ok(stored);
        }
        let id = convert::id(&object.metadata).ok_or_else(|| corrupt(&object, "it has no UID".to_owned()))?;
        let record = Record { id, ..record.clone() };
        match self.put(object, record).await {
            // An earlier attempt succeeded and its response was lost.
            Err(StoreError::Changed(_)) => match self.find(id).await? {
                Some(present) => self.read(&present)?.ok_or(StoreError::Changed(id)),
                None => Err(StoreError::Gone(id)),
            },
            other => other,
        }
    }

    /// Waits for the admission lease, under which conditions over several objects are checked.
    pub(super) async fn turn(&self) -> Result<(), Fault> {
        while self.admission.try_acquire().await? != LeaseAttempt::Acquired {
            tokio::time::sleep(ADMISSION_POLL).await;
        }
        Ok(())
    }
}
