//! What an agent knows of the cluster: watched, and read again by itself after whatever breaks a watch.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, PersistentVolumeClaim, Pod};
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::{self, Lookup, Store};
use kube::runtime::watcher::{self, Config, Event};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::objects;
use super::scoped::Scoped;
use super::wish::{Cache, Namespaces, Says, Scope};
use crate::kubernetes::convert;
use crate::kubernetes::crd::ImageCache;
use larder_model::image_cache::CacheId;

/// What is watched.
pub(super) struct Known {
    caches: Scoped,
    reads: Reads,
    pods: Store<Pod>,
    /// Pods that are on no node, and that wait for an image cache here.
    held: Store<Pod>,
    namespaces: NamespaceStore,
    claims: Store<PersistentVolumeClaim>,
    holders: Store<Pod>,
    node: String,
    _watches: JoinSet<()>,
}

/// The image caches of the cluster.
pub(super) struct Caches {
    objects: Store<ImageCache>,
    reads: Reads,
}

/// Image caches as they were read last: an object may be large, and passes are many.
struct Reads {
    /// Namespace of volumes.
    volumes: String,
    read: HashMap<CacheId, Read>,
}

struct Read {
    version: Option<String>,
    cache: Option<Arc<Cache>>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caches").finish_non_exhaustive()
    }
}

impl Caches {
    /// Starts the watch. `volumes` is the namespace of volumes.
    pub(super) fn new(client: &Client, volumes: &str, watches: &mut JoinSet<()>, wake: &Arc<Notify>) -> Self {
        let events = watcher::watcher(Api::all(client.clone()), Config::default());
        let events = events.modify(|cache: &mut ImageCache| {
            cache.metadata.managed_fields = None;
            if let Some(status) = &mut cache.status {
                status.events.clear();
                status.images.clear();
                status.conditions.clear();
            }
        });
        let objects = follow(watches, wake, events);
        Caches { objects, reads: Reads::new(volumes) }
    }

    /// Waits until all have been read once.
    pub(super) async fn ready(&self) {
        // The writer lives as long as the watch.
        let _ = self.objects.wait_until_ready().await;
    }

    /// The image caches now.
    pub(super) fn all(&mut self) -> Vec<Arc<Cache>> {
        self.reads.of(self.objects.state())
    }
}

impl Reads {
    fn new(volumes: &str) -> Self {
        Reads { volumes: volumes.to_owned(), read: HashMap::new() }
    }

    /// Reads these objects, of which most are as they were the last time.
    fn of(&mut self, objects: impl IntoIterator<Item = Arc<ImageCache>>) -> Vec<Arc<Cache>> {
        let mut before = std::mem::take(&mut self.read);
        for object in objects {
            let Some(id) = convert::id(&object.metadata) else { continue };
            let version = object.metadata.resource_version.clone();
            let read = match before.remove(&id) {
                Some(read) if read.version == version => read,
                _ => Read { version, cache: Cache::of(&object, &self.volumes).map(Arc::new) },
            };
            self.read.insert(id, read);
        }
        self.read.values().filter_map(|read| read.cache.clone()).collect()
    }
}

/// The namespaces of the cluster: their metadata.
pub(super) type NamespaceStore = Store<PartialObjectMeta<Namespace>>;

/// Watches the metadata of namespaces.
pub(super) fn namespaces(client: &Client, watches: &mut JoinSet<()>, wake: &Arc<Notify>) -> NamespaceStore {
    let events = watcher::watcher(Api::all(client.clone()), Config::default());
    let events = events.modify(|namespace: &mut PartialObjectMeta<Namespace>| {
        namespace.metadata.managed_fields = None;
    });
    follow(watches, wake, events)
}

/// What namespaces say in their annotations.
pub(super) fn said(namespaces: &NamespaceStore) -> Namespaces {
    let all = namespaces.state();
    all.iter().filter_map(|one| Some((one.name_any(), Says::of(one.annotations())?))).collect()
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

impl Known {
    /// Begins to watch for `node`; `wake` is told whenever something has changed. `volumes` is the namespace of volumes.
    pub(super) fn new(client: &Client, node: &str, volumes: &str, wake: &Arc<Notify>) -> Self {
        let mut watches = JoinSet::new();
        let own = Config::default().labels(&objects::selector(node));
        let on_node = Config::default().fields(&format!("spec.nodeName={node}"));
        let slim = |pod: &mut Pod| pod.metadata.managed_fields = None;
        let pods = watcher::watcher(Api::all(client.clone()), on_node).modify(slim);
        let pods = follow(&mut watches, wake, pods);
        let held = Config::default()
            .labels(&format!("{}={}", objects::ATTACH_ON, objects::node_label(node)))
            .fields("spec.nodeName=");
        let held = watcher::watcher(Api::all(client.clone()), held).modify(slim);
        let held = follow(&mut watches, wake, held);
        let namespaces = namespaces(client, &mut watches, wake);
        let claims = watcher::watcher(Api::namespaced(client.clone(), volumes), own.clone());
        let claims = follow(&mut watches, wake, claims);
        let holders = watcher::watcher(Api::namespaced(client.clone(), volumes), own);
        let holders = follow(&mut watches, wake, holders);
        Known {
            caches: Scoped::new(client, wake),
            reads: Reads::new(volumes),
            pods,
            held,
            namespaces,
            claims,
            holders,
            node: node.to_owned(),
            _watches: watches,
        }
    }

    /// Waits until all has been read once.
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

    /// Watches the image caches that matter, and waits until they have been read once. Returns whether they have.
    pub(super) async fn look_at(&mut self, scope: &Scope) -> bool {
        self.caches.look_at(scope).await
    }

    /// The image caches of the scope that was looked at last.
    pub(super) fn caches(&mut self) -> Vec<Arc<Cache>> {
        self.reads.of(self.caches.objects())
    }

    /// Pods that are on the node, and pods on no node whose image cache is to be attached here.
    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pods = self.pods.state();
        // Both watches have a pod for a moment when it comes here.
        let mut held = self.held.state();
        held.retain(|held| !pods.iter().any(|pod| pod.metadata.uid == held.metadata.uid));
        pods.append(&mut held);
        pods
    }

    /// What namespaces say in their annotations.
    pub(super) fn namespaces(&self) -> Namespaces {
        said(&self.namespaces)
    }

    /// Claims of the node, by name.
    pub(super) fn claims(&self) -> HashMap<String, Arc<PersistentVolumeClaim>> {
        let all = self.claims.state().into_iter().filter(|claim| objects::is_of(&claim.metadata, &self.node));
        all.map(|claim| (claim.name_any(), claim)).collect()
    }

    /// Holders of the node, also those that are on none yet.
    pub(super) fn holders(&self) -> Vec<Arc<Pod>> {
        let mut all = self.holders.state();
        all.retain(|pod| objects::is_of(&pod.metadata, &self.node));
        all
    }
}

/// Keeps the objects of a watch in a store for as long as the task in `watches` runs. Each change wakes the agent.
pub(super) fn follow<K>(
    watches: &mut JoinSet<()>,
    wake: &Arc<Notify>,
    events: impl futures_util::Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> Store<K>
where
    K: Resource + Lookup + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
    <K as Lookup>::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
{
    let (store, writer) = reflector::store();
    let wake = Arc::clone(wake);
    watches.spawn(async move {
        let mut events = std::pin::pin!(reflector::reflector(writer, events.default_backoff()));
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init | Event::InitApply(_)) => {}
                Ok(_) => wake.notify_one(),
                Err(error) => tracing::warn!("watching the cluster: {error}"),
            }
        }
    });
    store
}
