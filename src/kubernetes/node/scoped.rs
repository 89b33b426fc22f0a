//! The image caches that matter to one node.
//!
//! A cluster can have thousands of image caches, a node needs a few. So an agent watches the namespaces whose image caches its
//! pods, its configuration and its volumes name, and no others: then neither its memory nor what the API server sends it grows
//! with the cluster.

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

use super::known::follow;
use super::wish::Scope;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::crd::ImageCache;

/// Most namespaces that are watched one by one. A node that needs more watches all of them at once.
const MOST: usize = 32;
/// How long a namespace is watched after it was last needed: the next pod of a Deployment comes soon.
const KEEP: Duration = Duration::from_secs(600);
/// How long a pass waits for the first list of a namespace.
const FIRST: Duration = Duration::from_secs(10);

/// One watch.
#[derive(Debug)]
struct Watched {
    store: Store<ImageCache>,
    needed: Instant,
    _task: JoinSet<()>,
}

/// Watches of image caches, by namespace. The empty name is that of a watch of all namespaces.
#[derive(Debug)]
pub(super) struct Scoped {
    client: ApiServer,
    wake: Arc<Notify>,
    watched: BTreeMap<String, Watched>,
}

impl Scoped {
    /// Watches nothing yet.
    pub(super) fn new(client: &Client, wake: &Arc<Notify>) -> Self {
        Scoped { client: client.clone().into(), wake: Arc::clone(wake), watched: BTreeMap::new() }
    }

    /// Watches what is in `scope`, and ends watches that were not needed for a while. Waits until all that is needed was listed
    /// once, and returns whether it was.
    pub(super) async fn look_at(&mut self, scope: &Scope) -> bool {
        let of_all = BTreeSet::from([String::new()]);
        let needed = match scope {
            Scope::Namespaces(namespaces) if namespaces.len() <= MOST => namespaces,
            _ => &of_all,
        };
        let now = Instant::now();
        for namespace in needed {
            let watched = self.watched.entry(namespace.clone());
            watched.or_insert_with(|| watch(&self.client, namespace, &self.wake)).needed = now;
        }
        // A watch of all namespaces and one of a single namespace would both have the same objects.
        let all = needed.contains("");
        self.watched.retain(|namespace, watched| {
            needed.contains(namespace) || (!all && !namespace.is_empty() && now - watched.needed < KEEP)
        });
        let stores = self.watched.iter().filter(|(namespace, _)| needed.contains(*namespace));
        let ready = stores.map(|(_, watched)| watched.store.wait_until_ready());
        // An error says that the watch has ended, which it does with this value only.
        tokio::time::timeout(FIRST, futures_util::future::join_all(ready)).await.is_ok()
    }

    /// The objects of all watches.
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
        // No node looks at these.
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
