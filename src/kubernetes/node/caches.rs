//! The image caches that concern a node, or all of them for the leading daemon.
//!
//! A cluster can have thousands of image caches, and a node needs a few. Therefore an agent watches only the
//! namespaces whose image caches its pods, its configuration and its volumes name. Neither its memory nor the
//! traffic from the API server grows with the cluster.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::Store;
use kube::runtime::watcher::{self, Config};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::desired::{Cache, Scope};
use super::follow::follow;
use crate::kubernetes::client::ApiServer;
use crate::kubernetes::convert;
use crate::kubernetes::crd::ImageCache;
use larder_model::image_cache::CacheId;

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

/// The image caches in a scope.
pub(super) struct Caches {
    client: ApiServer,
    wake: Arc<Notify>,
    /// Watches by namespace. The empty name is the watch of all namespaces.
    watched: BTreeMap<String, Watched>,
    reads: Reads,
}

/// Parsed image caches. They are kept because objects can be large and passes are frequent.
struct Reads {
    /// The namespace of volumes.
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
    /// Creates an empty scope. Every change notifies `wake`. `volumes` is the namespace of volumes.
    pub(super) fn new(client: &Client, volumes: &str, wake: &Arc<Notify>) -> Self {
        Caches {
            client: client.clone().into(),
            wake: Arc::clone(wake),
            watched: BTreeMap::new(),
            reads: Reads::new(volumes),
        }
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

    /// Watches the image caches of all namespaces and waits for the first list.
    pub(super) async fn watch_all(&mut self) {
        while !self.set_scope(&Scope::All).await {}
    }

    /// Returns the current image caches.
    pub(super) fn all(&mut self) -> Vec<Arc<Cache>> {
        self.reads.of(self.watched.values().flat_map(|watched| watched.store.state()))
    }
}

impl Reads {
    fn new(volumes: &str) -> Self {
        Reads { volumes: volumes.to_owned(), read: HashMap::new() }
    }

    /// Parses these objects, most of which have not changed since the last call.
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
