//! Claims of nodes: their volumes, and the time at which their agents last saw a pod use them. Only metadata
//! is kept, because a cluster of a thousand nodes has about ten thousand claims.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};

use super::labelled;
use crate::kubernetes::names::LAST_USED;
use larder_model::image_cache::CacheId;

type Meta = PartialObjectMeta<PersistentVolumeClaim>;
type Claims = HashMap<CacheId, HashMap<String, Claim>>;

#[derive(Debug)]
struct Claim {
    generation: u32,
    used: Option<DateTime<Utc>>,
}

/// The known claims of all nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    claims: Claims,
    /// The list that is being read after the watch started or broke.
    reading: Claims,
    known: bool,
}

impl Nodes {
    /// Reports whether the first list of all claims is complete.
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Returns the name of a claim that uses a volume of a cache; any volume if `generation` is `None`.
    pub(super) fn claim_of(&self, id: CacheId, generation: Option<u32>) -> Option<&str> {
        let mut claims = self.claims.get(&id)?.iter();
        let is_of = |claim: &Claim| generation.is_none_or(|generation| claim.generation == generation);
        claims.find(|(_, claim)| is_of(claim)).map(|(name, _)| name.as_str())
    }

    /// Returns the time at which any pod last used a cache.
    pub(super) fn last_used(&self, id: CacheId) -> Option<DateTime<Utc>> {
        self.claims.get(&id)?.values().filter_map(|claim| claim.used).max()
    }

    fn apply(&mut self, event: Event<Meta>) {
        match event {
            Event::Init => self.reading.clear(),
            Event::InitApply(claim) => insert(&mut self.reading, &claim),
            Event::InitDone => {
                self.claims = std::mem::take(&mut self.reading);
                self.known = true;
            }
            Event::Apply(claim) => insert(&mut self.claims, &claim),
            Event::Delete(claim) => {
                let Some((id, _)) = labelled(&claim.metadata) else { return };
                if let Some(claims) = self.claims.get_mut(&id) {
                    claims.remove(&claim.name_any());
                    if claims.is_empty() {
                        self.claims.remove(&id);
                    }
                }
            }
        }
    }
}

fn insert(claims: &mut Claims, claim: &Meta) {
    let Some((id, generation)) = labelled(&claim.metadata) else { return };
    let used = claim.annotations().get(LAST_USED).and_then(|text| DateTime::parse_from_rfc3339(text).ok());
    let used = used.map(|time| time.to_utc());
    claims.entry(id).or_default().insert(claim.name_any(), Claim { generation, used });
}

/// Watches the claims of a namespace and does not return. `change` gives access to the known claims.
pub(super) async fn watch(
    client: &Client,
    namespace: &str,
    change: impl Fn(Box<dyn FnOnce(&mut Nodes) + Send>) + Send,
) {
    let api: Api<Meta> = Api::namespaced(client.clone(), namespace);
    // The watcher lists all objects again after every interruption.
    let mut events = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => change(Box::new(move |nodes| nodes.apply(event))),
            Err(error) => tracing::warn!("watching the claims of nodes: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;
    use crate::kubernetes::names::{GENERATION, ID};

    fn claim(name: &str, id: CacheId, generation: u32, used: Option<&str>) -> Meta {
        let labels = [(ID.to_owned(), id.to_string()), (GENERATION.to_owned(), generation.to_string())];
        let annotations = used.map(|used| [(LAST_USED.to_owned(), used.to_owned())].into());
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels.into()),
            annotations,
            ..ObjectMeta::default()
        };
        PartialObjectMeta { metadata, ..PartialObjectMeta::default() }
    }

    #[test]
    fn claims_are_counted_by_volume_and_the_latest_use_counts() {
        let (id, other) = (CacheId::random(), CacheId::random());
        let mut nodes = Nodes::default();
        nodes.apply(Event::Init);
        nodes.apply(Event::InitApply(claim("a", id, 1, Some("2026-11-30T01:00:00Z"))));
        nodes.apply(Event::InitApply(claim("b", id, 2, Some("2026-11-30T03:00:00Z"))));
        assert!(!nodes.is_known() && nodes.claim_of(id, Some(1)).is_none(), "half a list is none");
        nodes.apply(Event::InitDone);
        assert!(nodes.is_known());
        assert_eq!((nodes.claim_of(id, Some(1)), nodes.claim_of(id, Some(3))), (Some("a"), None));
        assert_eq!((nodes.claim_of(other, None), nodes.last_used(other)), (None, None));
        nodes.apply(Event::Apply(claim("c", id, 1, Some("not a time"))));
        assert_eq!(nodes.last_used(id).unwrap().to_rfc3339(), "2026-11-30T03:00:00+00:00");
        for name in ["a", "c"] {
            nodes.apply(Event::Delete(claim(name, id, 1, None)));
        }
        assert_eq!((nodes.claim_of(id, Some(1)), nodes.claim_of(id, None)), (None, Some("b")));
        // Objects that were deleted while the watch was broken are missing in the next list.
        nodes.apply(Event::Init);
        nodes.apply(Event::InitDone);
        assert_eq!(nodes.claim_of(id, None), None);
    }
}
