//! The objects that were made for image caches, as the watches last saw them: Jobs, pods, claims, snapshots,
//! and contents of copies.
//!
//! A watch costs the API server one request and then only the changes, regardless of the number of image
//! caches. It lags behind by milliseconds, or by the length of an outage. The inventory therefore only
//! indicates where and when to look. The caller must read an object before it acts on it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

use super::names::Names;
use super::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use crate::caches::volumes::{StateError, VolumeId};
use larder_model::class::Class;
use larder_model::image_cache::CacheId;

/// Maximum time that a reader waits for the first lists of all watches.
const FIRST_LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Capacity of the channel of changes. A listener that lags further behind must treat every object as
/// changed.
const MAX_LAG: usize = 1024;

/// Annotation of the content of a copy whose VolumeSnapshot is being deleted (external-snapshotter,
/// pkg/utils/util.go, `AnnVolumeSnapshotBeingDeleted`). A content with the policy Retain outlives its
/// snapshot.
const BEING_DELETED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted";

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Job,
    Pod,
    Claim,
    Snapshot,
    Content,
}

const KINDS: usize = 5;

/// The fields of an object that the inventory keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    volume: VolumeId,
    /// For a content: the namespace of its copy.
    offered: String,
    /// For a snapshot or a content: `true` if it can be used and is not being deleted.
    ready: bool,
}

/// A copy of a snapshot, according to its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Name of the VolumeSnapshotContent.
    pub(super) content: String,
    /// Namespace in which the copy is offered.
    pub(super) namespace: String,
    /// `true` if the copy can be used and is not being deleted.
    pub(super) ready: bool,
}

type Objects = HashMap<CacheId, BTreeMap<(Kind, String), Object>>;

/// The objects of one installation. Clones share their state.
#[derive(Clone)]
pub struct Inventory {
    objects: Arc<Mutex<Objects>>,
    /// Number of kinds whose first list is complete.
    listed: watch::Receiver<usize>,
    changes: broadcast::Sender<CacheId>,
    _watches: Arc<JoinSet<()>>,
}

impl fmt::Debug for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inventory").finish_non_exhaustive()
    }
}

impl Inventory {
    /// Starts watching the objects of the installation `names`. Must be called inside a Tokio runtime.
    pub fn new(client: &Client, names: &Names) -> Self {
        let (listed, receiver) = watch::channel(0);
        let table = Table {
            objects: Arc::default(),
            listed: Arc::new(listed),
            changes: broadcast::channel(MAX_LAG).0,
            names: names.clone(),
        };
        let labels = names.selector();
        let selected = || Config::default().labels(&labels);
        let mut watches = JoinSet::new();
        watches.spawn(table.clone().follow(
            Kind::Job,
            watch_metadata::<Job>(client, names, selected()),
            exists,
        ));
        watches.spawn(table.clone().follow(
            Kind::Pod,
            watch_metadata::<Pod>(client, names, selected()),
            exists,
        ));
        let claims = watch_metadata::<PersistentVolumeClaim>(client, names, selected());
        watches.spawn(table.clone().follow(Kind::Claim, claims, exists));
        let snapshots = Api::<VolumeSnapshot>::namespaced(client.clone(), &names.namespace);
        let snapshots = watcher::watcher(snapshots, selected());
        watches.spawn(table.clone().follow(Kind::Snapshot, snapshots, |snapshot| {
            (String::new(), snapshot.is_ready() && snapshot.metadata.deletion_timestamp.is_none())
        }));
        let contents = watcher::watcher(Api::<VolumeSnapshotContent>::all(client.clone()), selected());
        watches.spawn(table.clone().follow(Kind::Content, contents, |content| {
            let goes = content.metadata.deletion_timestamp.is_some()
                || content.annotations().contains_key(BEING_DELETED);
            let ready = content.status.as_ref().is_some_and(|status| status.ready_to_use == Some(true));
            (content.spec.volume_snapshot_ref.namespace.clone(), ready && !goes)
        }));
        Inventory {
            objects: table.objects,
            listed: receiver,
            changes: table.changes,
            _watches: Arc::new(watches),
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether the first list of every kind is complete.
    pub(super) fn is_complete(&self) -> bool {
        *self.listed.borrow() == KINDS
    }

    /// Returns the volumes for which any object exists.
    ///
    /// # Errors
    /// The first lists of the watches are not complete: the API server does not answer, or a permission is
    /// missing.
    pub(super) async fn volumes(&self) -> Result<Vec<VolumeId>, StateError> {
        let mut listed = self.listed.clone();
        let complete =
            tokio::time::timeout(FIRST_LIST_TIMEOUT, listed.wait_for(|listed| *listed == KINDS)).await;
        if !matches!(complete, Ok(Ok(_))) {
            return Err(StateError::Cluster {
                class: Class::Transient,
                reason: "the objects of image caches are not known yet: the watches have not started (see the log, and check \
                         that the rights of config/kubernetes/rbac.yaml are in effect)"
                    .to_owned(),
            });
        }
        let objects = self.objects();
        let mut all: Vec<VolumeId> =
            objects.values().flat_map(BTreeMap::values).map(|object| object.volume.clone()).collect();
        all.sort_by_key(|volume| (volume.id, volume.generation));
        all.dedup();
        Ok(all)
    }

    /// Reports whether the snapshot of a volume can be used. `false` can also mean that the watch lags
    /// behind.
    pub(super) fn is_sealed(&self, volume: &VolumeId) -> bool {
        let objects = self.objects();
        let mut own = objects.get(&volume.id).into_iter().flatten();
        own.any(|((kind, _), object)| *kind == Kind::Snapshot && object.volume == *volume && object.ready)
    }

    /// Returns the copies of a volume's snapshot.
    pub(super) fn copies(&self, volume: &VolumeId) -> Vec<Copy> {
        let objects = self.objects();
        let own = objects.get(&volume.id).into_iter().flatten();
        own.filter(|((kind, _), object)| *kind == Kind::Content && object.volume == *volume)
            .map(|((_, name), object)| Copy {
                content: name.clone(),
                namespace: object.offered.clone(),
                ready: object.ready,
            })
            .collect()
    }

    /// Subscribes to changes of all objects.
    pub(super) fn changes(&self) -> broadcast::Receiver<CacheId> {
        self.changes.subscribe()
    }

    /// Subscribes to changes of the objects of one image cache.
    pub(super) fn changes_of(&self, id: CacheId) -> Changes {
        Changes { id, receiver: self.changes() }
    }
}

/// A subscription to changes of the objects of one image cache.
#[derive(Debug)]
pub(super) struct Changes {
    id: CacheId,
    receiver: broadcast::Receiver<CacheId>,
}

impl Changes {
    /// Waits until an object has changed since the last call, for at most `max_wait`.
    pub(super) async fn wait(&mut self, max_wait: Duration) {
        let _ = tokio::time::timeout(max_wait, async {
            loop {
                match self.receiver.recv().await {
                    Ok(id) if id != self.id => {}
                    // The receiver lags: this image cache may have changed as well.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        })
        .await;
        // The caller reads the objects after this call, so it sees all changes that are still queued.
        while !matches!(
            self.receiver.try_recv(),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
        ) {}
    }
}

fn watch_metadata<K>(
    client: &Client,
    names: &Names,
    config: Config,
) -> impl Stream<Item = watcher::Result<Event<PartialObjectMeta<K>>>> + Send + use<K>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + fmt::Debug + Send + 'static,
    PartialObjectMeta<K>: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned,
{
    watcher::watcher(Api::<PartialObjectMeta<K>>::namespaced(client.clone(), &names.namespace), config)
}

fn exists<K>(_: &K) -> (String, bool) {
    (String::new(), false)
}

/// The state that the watches write.
#[derive(Clone)]
struct Table {
    objects: Arc<Mutex<Objects>>,
    listed: Arc<watch::Sender<usize>>,
    changes: broadcast::Sender<CacheId>,
    names: Names,
}

impl Table {
    /// Follows one kind and does not return. After an error, the watch restarts with growing pauses.
    async fn follow<K>(
        self,
        kind: Kind,
        events: impl Stream<Item = watcher::Result<Event<K>>> + Send,
        extract: impl Fn(&K) -> (String, bool) + Send,
    ) where
        K: ResourceExt + Send,
    {
        let mut events = std::pin::pin!(events.default_backoff());
        let mut found: Vec<(CacheId, String)> = Vec::new();
        let mut counted = false;
        while let Some(event) = events.next().await {
            match event {
                Err(error) => tracing::warn!("watching objects of image caches ({kind:?}): {error}"),
                Ok(Event::Init) => found.clear(),
                Ok(Event::InitApply(object)) => found.extend(self.put(kind, &object, &extract)),
                Ok(Event::Apply(object)) => {
                    self.put(kind, &object, &extract);
                }
                Ok(Event::Delete(object)) => {
                    if let Some(volume) = self.names.volume(object.meta()) {
                        self.take(kind, volume.id, &object.name_any());
                    }
                }
                Ok(Event::InitDone) => {
                    self.remove_missing(kind, &std::mem::take(&mut found));
                    if !std::mem::replace(&mut counted, true) {
                        self.listed.send_modify(|listed| *listed += 1);
                    }
                }
            }
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put<K: ResourceExt>(
        &self,
        kind: Kind,
        object: &K,
        extract: &impl Fn(&K) -> (String, bool),
    ) -> Option<(CacheId, String)> {
        let volume = self.names.volume(object.meta())?;
        let (id, name) = (volume.id, object.name_any());
        let (offered, ready) = extract(object);
        self.objects().entry(id).or_default().insert((kind, name.clone()), Object { volume, offered, ready });
        // An error only means that there is no receiver.
        let _ = self.changes.send(id);
        Some((id, name))
    }

    fn take(&self, kind: Kind, id: CacheId, name: &str) {
        let mut objects = self.objects();
        if let Some(own) = objects.get_mut(&id) {
            own.remove(&(kind, name.to_owned()));
            if own.is_empty() {
                objects.remove(&id);
            }
        }
        drop(objects);
        let _ = self.changes.send(id);
    }

    /// Removes the objects that a new list does not contain.
    fn remove_missing(&self, kind: Kind, found: &[(CacheId, String)]) {
        let found: std::collections::HashSet<&(CacheId, String)> = found.iter().collect();
        let gone: Vec<(CacheId, String)> = self
            .objects()
            .iter()
            .flat_map(|(id, own)| {
                own.keys().filter(|(of, _)| *of == kind).map(|(_, name)| (*id, name.clone()))
            })
            .filter(|object| !found.contains(object))
            .collect();
        gone.iter().for_each(|(id, name)| self.take(kind, *id, name));
    }
}
