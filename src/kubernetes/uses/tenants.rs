//! Claims in the namespaces of tenants that were restored from a copy, or are to be.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use crate::kubernetes::fault::{Fault, ask};
use crate::kubernetes::names::volume_of;
use larder_model::image_cache::CacheId;

/// Objects of one answer of a list.
const PAGE: u32 = 500;

/// Claims by the volume that they are restored from.
pub(super) type Claims = HashMap<(CacheId, u32), String>;

/// The claims of namespaces, as they were listed last.
#[derive(Debug, Default)]
pub(super) struct Tenants(HashMap<String, Listed>);

#[derive(Debug)]
struct Listed {
    at: Instant,
    time: DateTime<Utc>,
    claims: Claims,
}

impl Tenants {
    pub(super) fn put(&mut self, namespace: &str, claims: Claims, time: DateTime<Utc>) {
        self.0.insert(namespace.to_owned(), Listed { at: Instant::now(), time, claims });
    }

    pub(super) fn is_listed(&self, namespace: &str, max_age: Duration) -> bool {
        self.0.get(namespace).is_some_and(|listed| listed.at.elapsed() < max_age)
    }

    /// The claim that uses a volume of a cache, with `None` any volume. `None` if there is no list that is young enough.
    pub(super) fn claim_of(
        &self,
        namespace: &str,
        id: CacheId,
        generation: Option<u32>,
        max_age: Duration,
    ) -> Option<Option<String>> {
        let listed = self.0.get(namespace).filter(|listed| listed.at.elapsed() < max_age)?;
        let is_of =
            |of: &(CacheId, u32)| of.0 == id && generation.is_none_or(|generation| generation == of.1);
        Some(listed.claims.iter().find(|(of, _)| is_of(of)).map(|(_, claim)| claim.clone()))
    }

    /// When a claim of a cache was last seen.
    pub(super) fn last_used(&self, namespace: &str, id: CacheId) -> Option<DateTime<Utc>> {
        let listed = self.0.get(namespace)?;
        listed.claims.keys().any(|of| of.0 == id).then_some(listed.time)
    }
}

/// Lists the claims of a namespace that are restored from a copy. Without the right to list claims there are none.
pub(super) async fn list(client: &Client, namespace: &str) -> Result<Claims, Fault> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let doing = format!("listing the claims of {namespace}");
    let mut claims = Claims::new();
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = match ask!(&doing, api.list(&parameters)) {
            Ok(page) => page,
            Err(fault) if matches!(fault.code(), 403 | 404) => {
                tracing::debug!("{fault}");
                return Ok(Claims::new());
            }
            // The list is too old to be continued.
            Err(fault) if fault.code() == 410 && parameters.continue_token.is_some() => {
                claims.clear();
                parameters.continue_token = None;
                continue;
            }
            Err(fault) => return Err(fault),
        };
        claims.extend(page.items.iter().filter_map(|claim| Some((source(claim)?, claim.name_any()))));
        parameters.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if parameters.continue_token.is_none() {
            return Ok(claims);
        }
    }
}

/// The volume that a claim is restored from.
fn source(claim: &PersistentVolumeClaim) -> Option<(CacheId, u32)> {
    let spec = claim.spec.as_ref()?;
    let (kind, name) = match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), _) => (&source.kind, &source.name),
        (None, Some(source)) => (&source.kind, &source.name),
        (None, None) => return None,
    };
    volume_of(name).filter(|_| kind == "VolumeSnapshot")
}
