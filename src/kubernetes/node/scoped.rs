//! The image caches that concern one node.
//!
//! A cluster can have thousands of image caches, and a node needs a few. Therefore an agent watches only the
//! namespaces whose image caches its pods, its configuration and its volumes name. Neither its memory nor the
//! traffic from the API server grows with the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Config};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::desired::Scope;
use super::follow::follow;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::crd::ImageCache;

/// Maximum number of namespaces with a watch of their own. A node that needs more watches all namespaces at
/// once.
const MAX_NAMESPACES: usize = 32;
/// Duration for which a namespace is still watched after it was last needed, because the next pod of a
/// Deployment often follows soon.
const KEEP_WATCH: Duration = Duration::from_secs(600);
/// Maximum time that a pass waits for the first list of a namespace.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// The watch of one namespace.
#[derive(Debug)]
struct Watched {
    store: Store<ImageCache>,
    needed: Instant,
    _task: JoinSet<()>,
}

/// Watches of image caches by namespace. The empty name is the watch of all namespaces.
#[derive(Debug)]
pub(super) struct Scoped {
    client: ApiServer,
    wake: Arc<Notify>,
    watched: BTreeMap<String, Watched>,
}

impl Scoped {
    /// Creates an empty set of watches.
    pub(super) fn new(client: &Client, wake: &Arc<Notify>) -> Self {
        Scoped { client: client.clone().into(), wake: Arc::clone(wake), watched: BTreeMap::new() }
    }

    /// Watches the namespaces in `scope`, and ends watches that were not needed for a while. Waits for the
    /// first list of each of them, and returns whether all are complete.
    pub(super) async fn set_scope(&mut self, scope: &Scope) -> bool {
        let of_all = BTreeSet::from([String::new()]);
        let needed = match scope {
            Scope::Namespaces(namespaces) if namespaces.len() <= MAX_NAMESPACES => namespaces,
            _ => &of_all,
        };
        let now = Instant::now();
        for namespace in needed {
            let watched = self.watched.entry(namespace.clone());
            watched.or_insert_with(|| watch(&self.client, namespace, &self.wake)).needed = now;
        }
        // A watch of all namespaces would deliver the same objects as one of a single namespace.
        let all = needed.contains("");
        self.watched.retain(|namespace, watched| {
            needed.contains(namespace) || (!all && !namespace.is_empty() && now - watched.needed < KEEP_WATCH)
        });
        let stores = self.watched.iter().filter(|(namespace, _)| needed.contains(*namespace));
        let ready = stores.map(|(_, watched)| watched.store.wait_until_ready());
        // An error means that the watch has ended, which only happens when this value is dropped.
        tokio::time::timeout(FIRST_LIST_TIMEOUT, futures_util::future::join_all(ready)).await.is_ok()
    }

    /// Returns the objects of all watches.
    pub(super) fn objects(&self) -> Vec<Arc<ImageCache>> {
        self.watched.values().flat_map(|watched| watched.store.state()).collect()
    }
}

fn watch(client: &ApiServer, namespace: &str, wake: &Arc<Notify>) -> Watched {
    let api: Api<ImageCache> = match namespace {
        "" => Api::all((**client).clone()),
        namespace => Api::namespaced((**client).clone(), namespace),
    };
    let events = watcher::watcher(api, Config::default()).modify(|cache: &mut ImageCache| {
        // Agents do not read these fields.
        cache.metadata.managed_fields = None;
        if let Some(status) = &mut cache.status {
            status.events = Vec::new();
            status.images = Vec::new();
            status.conditions = Vec::new();
        }
    });
    let mut task = JoinSet::new();
    let store = follow(&mut task, wake, events);
    Watched { store, needed: Instant::now(), _task: task }
}
