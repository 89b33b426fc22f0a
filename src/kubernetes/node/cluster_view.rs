//! The objects of the cluster that an agent watches. A watch that breaks restarts by itself.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Config};
use kube::{Client, ResourceExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::caches::Caches;
use super::desired::{Annotations, Cache, Namespaces, Scope};
use super::follow::follow;
use super::labels;

/// The watches of an agent.
pub(super) struct ClusterView {
    caches: Caches,
    pods: Store<Pod>,
    /// Unscheduled pods that wait for an image cache on this node.
    held: Store<Pod>,
    namespaces: NamespaceStore,
    claims: Store<PersistentVolumeClaim>,
    holders: Store<Pod>,
    node: String,
    _watches: JoinSet<()>,
}

/// The metadata of the namespaces of the cluster.
pub(super) type NamespaceStore = Store<PartialObjectMeta<Namespace>>;

/// Watches the metadata of namespaces.
pub(super) fn namespaces(client: &Client, watches: &mut JoinSet<()>, wake: &Arc<Notify>) -> NamespaceStore {
    let events = watcher::watcher(Api::all(client.clone()), Config::default());
    let events = events.modify(|namespace: &mut PartialObjectMeta<Namespace>| {
        namespace.metadata.managed_fields = None;
    });
    follow(watches, wake, events)
}

/// Returns the annotations of namespaces.
pub(super) fn annotations_of(namespaces: &NamespaceStore) -> Namespaces {
    let all = namespaces.state();
    all.iter().filter_map(|one| Some((one.name_any(), Annotations::of(one.annotations())?))).collect()
}

impl fmt::Debug for ClusterView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterView").finish_non_exhaustive()
    }
}

impl ClusterView {
    /// Starts the watches for `node`. Every change notifies `wake`. `volumes` is the namespace of volumes.
    pub(super) fn new(client: &Client, node: &str, volumes: &str, wake: &Arc<Notify>) -> Self {
        let mut watches = JoinSet::new();
        let own = Config::default().labels(&labels::selector(node));
        let on_node = Config::default().fields(&format!("spec.nodeName={node}"));
        let slim = |pod: &mut Pod| pod.metadata.managed_fields = None;
        let pods = watcher::watcher(Api::all(client.clone()), on_node).modify(slim);
        let pods = follow(&mut watches, wake, pods);
        let held = Config::default()
            .labels(&format!("{}={}", labels::ATTACH_ON, labels::node_label(node)))
            .fields("spec.nodeName=");
        let held = watcher::watcher(Api::all(client.clone()), held).modify(slim);
        let held = follow(&mut watches, wake, held);
        let namespaces = namespaces(client, &mut watches, wake);
        let claims = watcher::watcher(Api::namespaced(client.clone(), volumes), own.clone());
        let claims = follow(&mut watches, wake, claims);
        let holders = watcher::watcher(Api::namespaced(client.clone(), volumes), own);
        let holders = follow(&mut watches, wake, holders);
        ClusterView {
            caches: Caches::new(client, volumes, wake),
            pods,
            held,
            namespaces,
            claims,
            holders,
            node: node.to_owned(),
            _watches: watches,
        }
    }

    /// Waits until the first list of every watch is complete.
    pub(super) async fn ready(&self) {
        // The writers live as long as the watches.
        let _ = tokio::join!(
            self.pods.wait_until_ready(),
            self.held.wait_until_ready(),
            self.namespaces.wait_until_ready(),
            self.claims.wait_until_ready(),
            self.holders.wait_until_ready(),
        );
    }

    /// Watches the image caches in `scope` and waits for their first lists. Returns whether all are complete.
    pub(super) async fn set_scope(&mut self, scope: &Scope) -> bool {
        self.caches.set_scope(scope).await
    }

    /// Returns the image caches of the last scope.
    pub(super) fn caches(&mut self) -> Vec<Arc<Cache>> {
        self.caches.all()
    }

    /// Returns the pods on the node, and the unscheduled pods whose image cache must be attached on it.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.state();
        // While a pod is being scheduled to this node, both watches can have it.
        let mut held = self.held.state();
        held.retain(|held| !pods.iter().any(|pod| pod.metadata.uid == held.metadata.uid));
        pods.append(&mut held);
        pods
    }

    /// Returns the annotations of namespaces.
    pub(super) fn namespaces(&self) -> Namespaces {
        annotations_of(&self.namespaces)
    }

    /// Returns the claims of the node, by name.
    pub(super) fn claims(&self) -> HashMap<String, Arc<PersistentVolumeClaim>> {
        let all = self.claims.state().into_iter().filter(|claim| labels::is_of(&claim.metadata, &self.node));
        all.map(|claim| (claim.name_any(), claim)).collect()
    }

    /// Returns the holders of the node, including unscheduled ones.
    pub(super) fn holders(&self) -> Vec<Arc<Pod>> {
        let mut all = self.holders.state();
        all.retain(|pod| labels::is_of(&pod.metadata, &self.node));
        all
    }
}
