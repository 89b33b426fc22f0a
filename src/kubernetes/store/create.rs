//! Creation of image caches.

use kube::ResourceExt as _;

use super::super::convert;
use super::super::crd::ImageCache;
use super::super::fault::{opt, request};
use super::super::names::{KEY, NONCE, REQUEST, namespace};
use super::objects::{corrupt, write_parameters};
use super::{KubeStore, REPAIR_WINDOW, admission, annotation, keys};
use crate::caches::record::Record;
use crate::caches::store::{AdmissionDecision, Created, IdempotencyKey, StoreError, Stored};
use larder_model::digest::hex;
use larder_model::image_cache::{Spec, TenantName};

/// An idempotency key with the hash that names it.
struct HashedKey {
    key: IdempotencyKey,
    hash: String,
}

impl HashedKey {
    fn of(tenant: &TenantName, key: IdempotencyKey) -> Self {
        HashedKey { hash: keys::hash(tenant, &key.key), key }
    }
}

impl KubeStore {
    pub(super) async fn create(
        &self,
        record: Record,
        decision: AdmissionDecision,
        key: Option<IdempotencyKey>,
    ) -> Result<Created, StoreError> {
        let key = key.map(|key| HashedKey::of(&record.tenant, key));
        self.admission.run(Box::pin(self.create_alone(record, decision, key))).await
    }

    /// Creates a record while no other request is admitted.
    async fn create_alone(
        &self,
        record: Record,
        decision: AdmissionDecision,
        key: Option<HashedKey>,
    ) -> Result<Created, StoreError> {
        if let Some(HashedKey { key, hash }) = &key
            && let Some(answer) = self.keys.find(&record.tenant, hash).await?
        {
            return answer.of(key).map(|record| Created::Before(Box::new(record)));
        }
        let own = self.objects.list(Some(namespace(&record.tenant))).await?;
        if let Some(key) = &key
            && let Some(first) = self.repair(&record, key, &own).await?
        {
            return Ok(Created::Before(Box::new(first)));
        }
        if own.iter().any(|object| object.name_any() == record.spec.name.as_str()) {
            return Err(StoreError::NameTaken(record.spec.name));
        }
        let limits = decision.limits()?;
        admission::check(&self.objects, &limits, &record, (&own, own.len()), false).await?;
        let object = self.post(&record, self.object(&record, key.as_ref()), own.len()).await?;
        let stored = self.init_status(object, &record).await?;
        if let Some(HashedKey { key, hash }) = &key {
            self.keys.keep(hash, key, &stored.record).await?;
        }
        Ok(Created::New(stored))
    }

    /// Completes an earlier create with the same key. A daemon may have stopped between writing the object
    /// and the key.
    async fn repair(
        &self,
        record: &Record,
        HashedKey { key, hash }: &HashedKey,
        own: &[ImageCache],
    ) -> Result<Option<Record>, StoreError> {
        let has_key = |object: &&ImageCache| {
            annotation(object, KEY) == Some(hash)
                && record.created_at - convert::created(&object.metadata) < REPAIR_WINDOW
        };
        let Some(object) = own.iter().find(has_key) else { return Ok(None) };
        // Anyone who can write objects can forge the annotation: the spec must match the request as well.
        let spec = convert::spec(&object.metadata, &object.spec, self.cluster());
        let same =
            spec.is_ok_and(|spec| Spec { retention_days: record.spec.retention_days, ..spec } == record.spec);
        if !same || annotation(object, REQUEST) != Some(&hex(&key.request)) {
            return Err(StoreError::KeyReused);
        }
        let Record { id, tenant, spec, created_at, .. } =
            self.init_status(object.clone(), record).await?.record;
        let first = Record::new(id, tenant, spec, created_at);
        self.keys.keep(hash, key, &first).await?;
        Ok(Some(first))
    }

    /// Returns the object of a new record.
    fn object(&self, record: &Record, key: Option<&HashedKey>) -> ImageCache {
        let mut object = convert::object(record, self.cluster());
        let annotations = object.annotations_mut();
        annotations.insert(NONCE.to_owned(), record.id.to_string());
        if let Some(HashedKey { key, hash }) = key {
            annotations.insert(KEY.to_owned(), hash.clone());
            annotations.insert(REQUEST.to_owned(), hex(&key.request));
        }
        object
    }

    /// Creates the object of a request.
    async fn post(&self, record: &Record, object: ImageCache, have: usize) -> Result<ImageCache, StoreError> {
        let api = self.objects.api(namespace(&record.tenant));
        let name = record.spec.name.as_str();
        let doing = format!("creating the image cache {}/{name}", record.tenant);
        match request!(&doing, api.create(&write_parameters(), &object)) {
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
    async fn init_status(&self, object: ImageCache, record: &Record) -> Result<Stored, StoreError> {
        self.objects.index(&object);
        if let Some(stored) = self.objects.read(&object)? {
            return Ok(stored);
        }
        let id = convert::id(&object.metadata).ok_or_else(|| corrupt(&object, "it has no UID".to_owned()))?;
        let record = Record { id, ..record.clone() };
        match self.objects.put(object, record).await {
            // An earlier attempt succeeded and its response was lost.
            Err(StoreError::Changed(_)) => match self.objects.find(id).await? {
                Some(present) => self.objects.read(&present)?.ok_or(StoreError::Changed(id)),
                None => Err(StoreError::Gone(id)),
            },
            other => other,
        }
    }
}
