//! Finds the claims that use the volumes of image caches: claims of nodes, and claims that tenants restored
//! from a copy.
//!
//! | claim | source |
//! |---|---|
//! | in the namespace of volumes, created by the agent of a node | one watch of metadata |
//! | in a namespace with a copy, with the copy as its source | a list, cached for ten minutes if in use |
//!
//! A claim uses a volume as long as the claim exists. A claim that is not bound yet also needs the snapshot:
//! a provisioner refuses a snapshot that is being deleted (external-provisioner,
//! pkg/controller/controller.go, getSnapshotSource), and the snapshot waits for the claim. Both would wait
//! for each other.

mod nodes;
mod tenants;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use kube::{Client, ResourceExt as _};

use self::nodes::Nodes;
use self::tenants::Tenants;
use super::client::ApiServer;
use super::crd::ImageCache;
use super::fault::Fault;
use crate::caches::volumes::VolumeId;
use larder_model::image_cache::CacheId;
use larder_sys::clock::Clock;

/// The claims that use the volumes of image caches.
#[derive(Debug)]
pub struct Uses {
    client: ApiServer,
    clock: Arc<dyn Clock>,
    /// Namespace of the claims of nodes; empty if no nodes have agents.
    node_namespace: String,
    /// Maximum age of a cached answer "in use".
    used_for: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    nodes: Nodes,
    tenants: Tenants,
    /// Namespaces that have copies of an image cache, without the namespace of volumes.
    namespaces: HashMap<CacheId, BTreeSet<String>>,
    /// Replaced volumes that were in use when they were last checked.
    previous: HashMap<CacheId, BTreeSet<u32>>,
}

impl Uses {
    /// Returns the uses in a cluster whose nodes have their claims in `node_namespace`; empty if no node has
    /// an agent. The answer "in use" is cached for `used_for`.
    pub fn new(client: Client, clock: Arc<dyn Clock>, node_namespace: &str, used_for: Duration) -> Self {
        Uses {
            client: client.into(),
            clock,
            node_namespace: node_namespace.to_owned(),
            used_for,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the namespaces in which an image cache has copies. A namespace that is no longer shared with
    /// stays until the daemon ends, because volumes that were replaced earlier can still have copies there.
    pub fn note_copies(&self, id: CacheId, object: &ImageCache) {
        let mut state = self.state();
        let namespaces = state.namespaces.entry(id).or_default();
        namespaces.extend(object.namespace());
        let copies = object.status.iter().flat_map(|status| &status.copies);
        let shared = copies.map(|copy| copy.namespace.clone());
        namespaces.extend(shared.filter(|namespace| *namespace != self.node_namespace));
    }

    /// Removes an image cache that is gone.
    pub fn forget(&self, id: CacheId) {
        let mut state = self.state();
        state.namespaces.remove(&id);
        state.previous.remove(&id);
    }

    /// Returns a text that names a claim that uses a volume. `None` if it is not in use.
    ///
    /// # Errors
    /// A request failed and can succeed later. The use of the volume is then unknown.
    pub async fn of(&self, volume: &VolumeId) -> Result<Option<String>, Fault> {
        let used = self.find(volume.id, volume.generation).await?;
        let mut state = self.state();
        let previous = state.previous.entry(volume.id).or_default();
        match used {
            Some(_) => previous.insert(volume.generation),
            None => previous.remove(&volume.generation),
        };
        Ok(used)
    }

    /// Returns a text that names a claim that uses any volume of an image cache. `None` if it is not in use.
    ///
    /// # Errors
    /// The same as for [`of`](Uses::of).
    pub async fn of_any(&self, id: CacheId) -> Result<Option<String>, Fault> {
        self.find(id, None).await
    }

    /// Records that a volume is being deleted.
    pub fn release(&self, volume: &VolumeId) {
        if let Some(previous) = self.state().previous.get_mut(&volume.id) {
            previous.remove(&volume.generation);
        }
    }

    /// Returns the number of replaced volumes of an image cache that are kept because they are in use.
    pub fn previous(&self, id: CacheId) -> usize {
        self.state().previous.get(&id).map_or(0, BTreeSet::len)
    }

    async fn find(&self, id: CacheId, generation: impl Into<Option<u32>>) -> Result<Option<String>, Fault> {
        let generation = generation.into();
        let namespaces = {
            let state = self.state();
            let known = self.node_namespace.is_empty() || state.nodes.is_known();
            let Some(namespaces) = state.namespaces.get(&id).filter(|_| known) else {
                return Ok(Some("its uses are not known yet".to_owned()));
            };
            if let Some(claim) = state.nodes.claim_of(id, generation) {
                return Ok(Some(format!("the claim {}/{claim} of a node uses it", self.node_namespace)));
            }
            namespaces.clone()
        };
        for namespace in &namespaces {
            let of = |tenants: &Tenants, max_age| tenants.claim_of(namespace, id, generation, max_age);
            if let Some(Some(claim)) = of(&self.state().tenants, self.used_for) {
                return Ok(Some(format!("the claim {namespace}/{claim} uses it")));
            }
            // A cached list does not contain the claims that were created since.
            self.list(namespace).await?;
            if let Some(Some(claim)) = of(&self.state().tenants, self.used_for) {
                return Ok(Some(format!("the claim {namespace}/{claim} uses it")));
            }
        }
        Ok(None)
    }

    /// Lists the claims of a namespace.
    async fn list(&self, namespace: &str) -> Result<(), Fault> {
        let claims = tenants::list(&self.client, namespace).await?;
        self.state().tenants.put(namespace, claims, self.clock.now());
        Ok(())
    }

    /// Lists namespaces with copies that were not listed for ten minutes, at most `max` of them. Returns the
    /// number of lists.
    pub async fn list_stale(&self, max: usize) -> usize {
        let due: BTreeSet<String> = {
            let state = self.state();
            let all = state.namespaces.values().flatten();
            all.filter(|namespace| !state.tenants.is_listed(namespace, self.used_for)).cloned().collect()
        };
        let mut listed = 0;
        for namespace in due.iter().take(max) {
            listed += 1;
            if let Err(fault) = self.list(namespace).await {
                tracing::debug!("{fault}");
            }
        }
        listed
    }

    /// Returns the time of the last known use of an image cache.
    pub fn last_used(&self, id: CacheId) -> Option<DateTime<Utc>> {
        let state = self.state();
        let namespaces = state.namespaces.get(&id)?;
        let tenants = namespaces.iter().filter_map(|namespace| state.tenants.last_used(namespace, id));
        // An agent can report that a cache is in use now, but not in the future.
        let nodes = state.nodes.last_used(id).map(|time| time.min(self.clock.now()));
        tenants.chain(nodes).max()
    }

    /// Watches the claims of nodes and does not return.
    pub async fn watch(&self) {
        if self.node_namespace.is_empty() {
            std::future::pending::<()>().await;
        }
        nodes::watch(&self.client, &self.node_namespace, |change| change(&mut self.state().nodes)).await;
    }
}

/// Returns the cache and the volume number of an object, according to its labels.
fn labelled(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<(CacheId, u32)> {
    let labels = meta.labels.as_ref()?;
    Some((labels.get(super::names::ID)?.parse().ok()?, labels.get(super::names::GENERATION)?.parse().ok()?))
}
