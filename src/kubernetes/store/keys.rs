//! Idempotency keys and their responses: one ConfigMap for each key, in Larder's own namespace, which no
//! tenant can read.
//!
//! Keys are confidential to their tenants, so the names of the ConfigMaps contain only a hash.

use std::collections::HashMap;

use chrono::{DateTime, SecondsFormat, Utc};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt as _};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::caches::record::Record;
use crate::caches::store::{IdempotencyKey, MAX_KEYS_PER_TENANT, StoreError};
use crate::kubernetes::fault::{Fault, opt, request};
use crate::kubernetes::names::MANAGER;
use larder_model::digest::hex;
use larder_model::image_cache::TenantName;

/// Label: the tenant of the key.
const KEY_OF: &str = "larder.dev/key-of";
/// Annotation: creation time of the record of the key.
const USED_AT: &str = "larder.dev/used-at";

/// Access to the keys of all tenants.
#[derive(Debug)]
pub(super) struct Keys {
    api: Api<ConfigMap>,
}

/// The stored response to a key.
#[derive(Debug)]
pub(super) struct Answer {
    request: String,
    record: Record,
}

impl Answer {
    /// Returns the response if `key` came with the same request.
    ///
    /// # Errors
    /// [`StoreError::KeyReused`] if the request differs.
    pub(super) fn of(self, key: &IdempotencyKey) -> Result<Record, StoreError> {
        if self.request == hex(&key.request) { Ok(self.record) } else { Err(StoreError::KeyReused) }
    }
}

/// Returns the hash that names a key.
pub(super) fn hash(tenant: &TenantName, key: &str) -> String {
    let mut hash = Sha256::new();
    // Names of tenants contain no line break.
    hash.update(tenant.as_str());
    hash.update("\n");
    hash.update(key);
    hex(&hash.finalize())
}

fn name(hash: &str) -> String {
    format!("larder-key-{hash}")
}

impl Keys {
    pub(super) fn new(client: Client, namespace: &str) -> Self {
        Keys { api: Api::namespaced(client, namespace) }
    }

    /// Returns the response to a key, if it is among the last [`MAX_KEYS_PER_TENANT`] of its tenant.
    pub(super) async fn find(&self, tenant: &TenantName, hash: &str) -> Result<Option<Answer>, StoreError> {
        let found = opt(request!("reading an idempotency key", self.api.get(&name(hash))))?;
        let Some(found) = found else { return Ok(None) };
        let used_at = used_at(&found);
        let newer = self.list(&format!("{KEY_OF}={tenant}")).await?;
        if newer.iter().filter(|other| self::used_at(*other) > used_at).count() >= MAX_KEYS_PER_TENANT {
            self.delete(&name(hash)).await?;
            return Ok(None);
        }
        let damaged = |what: String| StoreError::Corrupt {
            path: format!("configmaps/{}", name(hash)),
            what,
            remedy: "delete it".to_owned(),
        };
        let data = found.data.unwrap_or_default();
        let text = |key: &str| data.get(key).ok_or_else(|| damaged(format!("it has no {key}")));
        let record = serde_json::from_str(text("record")?).map_err(|e| damaged(e.to_string()))?;
        Ok(Some(Answer { request: text("request")?.clone(), record }))
    }

    /// Stores the response to a key.
    pub(super) async fn keep(
        &self,
        hash: &str,
        key: &IdempotencyKey,
        record: &Record,
    ) -> Result<(), StoreError> {
        let text = serde_json::to_string(record);
        let text =
            text.map_err(|e| StoreError::Failed { doing: "writing", reason: e.to_string(), full: false })?;
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": name(hash),
                "labels": {KEY_OF: record.tenant.as_str()},
                "annotations": {USED_AT: record.created_at.to_rfc3339_opts(SecondsFormat::Nanos, true)},
            },
            "data": {"request": hex(&key.request), "record": text},
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let doing = "storing an idempotency key";
        request!(doing, self.api.patch(&name(hash), &parameters, &Patch::Apply(&map)))?;
        Ok(())
    }

    /// Deletes keys from before `time`, and all but the last [`MAX_KEYS_PER_TENANT`] of each tenant.
    pub(super) async fn forget(&self, time: DateTime<Utc>) -> Result<(), Fault> {
        let mut of_tenant: HashMap<String, Vec<PartialObjectMeta<ConfigMap>>> = HashMap::new();
        for key in self.list(KEY_OF).await? {
            let tenant = key.labels().get(KEY_OF).cloned().unwrap_or_default();
            of_tenant.entry(tenant).or_default().push(key);
        }
        for keys in of_tenant.values_mut() {
            keys.sort_by_key(|key| std::cmp::Reverse(used_at(key)));
            for (at, key) in keys.iter().enumerate() {
                if at >= MAX_KEYS_PER_TENANT || used_at(key).is_none_or(|used_at| used_at < time) {
                    self.delete(&key.name_any()).await?;
                }
            }
        }
        Ok(())
    }

    async fn list(&self, labels: &str) -> Result<Vec<PartialObjectMeta<ConfigMap>>, Fault> {
        let parameters = ListParams::default().labels(labels);
        Ok(request!("listing idempotency keys", self.api.list_metadata(&parameters))?.items)
    }

    async fn delete(&self, name: &str) -> Result<(), Fault> {
        let parameters = DeleteParams::default();
        opt(request!("deleting an idempotency key", self.api.delete(name, &parameters)))?;
        Ok(())
    }
}

fn used_at(object: &impl kube::ResourceExt) -> Option<DateTime<Utc>> {
    let text = object.annotations().get(USED_AT)?;
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc())
}
