//! Claims in the namespaces of tenants that have a copy as their source, bound or not.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};

use crate::kubernetes::fault::{Fault, request};
use crate::kubernetes::names::volume_of;
use larder_model::image_cache::CacheId;

/// Maximum number of objects in one response to a list request.
const PAGE_SIZE: u32 = 500;

/// Names of claims, by the volume that they are restored from.
pub(super) type Claims = HashMap<(CacheId, u32), String>;

/// The claims of namespaces, as last listed.
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

    /// Returns the name of a claim that uses a volume of a cache; any volume if `generation` is `None`. The
    /// outer `None` means that no list is younger than `max_age`.
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

    /// Returns the time at which a claim of a cache was last seen.
    pub(super) fn last_used(&self, namespace: &str, id: CacheId) -> Option<DateTime<Utc>> {
        let listed = self.0.get(namespace)?;
        listed.claims.keys().any(|of| of.0 == id).then_some(listed.time)
    }
}

/// Lists the claims of a namespace that are restored from a copy. Returns an empty list without permission to
/// list claims.
pub(super) async fn list(client: &Client, namespace: &str) -> Result<Claims, Fault> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let doing = format!("listing the claims of {namespace}");
    let mut claims = Claims::new();
    let mut parameters = ListParams::default().limit(PAGE_SIZE);
    loop {
        let page = match request!(&doing, api.list(&parameters)) {
            Ok(page) => page,
            Err(fault) if matches!(fault.code(), 403 | 404) => {
                tracing::debug!("{fault}");
                return Ok(Claims::new());
            }
            // The continue token has expired.
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

/// Returns the volume that a claim is restored from.
fn source(claim: &PersistentVolumeClaim) -> Option<(CacheId, u32)> {
    let spec = claim.spec.as_ref()?;
    let (kind, name) = match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), _) => (&source.kind, &source.name),
        (None, Some(source)) => (&source.kind, &source.name),
        (None, None) => return None,
    };
    volume_of(name).filter(|_| kind == "VolumeSnapshot")
}
