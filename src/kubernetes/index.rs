//! Index of the image caches of the cluster, as a watch last saw them.
//!
//! A watch lags behind the API server by milliseconds, or by the length of an outage. The index therefore
//! only finds what needs attention. The caller must read the object again before it acts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::caches::store::Stored;
use larder_model::image_cache::CacheId;

/// Namespace and name of an object. They never change for a given UID.
pub(super) type ObjectName = (String, String);

/// The status of an object, as last seen.
#[derive(Clone, Debug)]
pub(super) enum IndexedStatus {
    /// A record. The histories of its layers are removed: they are its largest part and are not read from the
    /// index.
    Record(Arc<Stored>),
    /// No status yet, or a refusal.
    Nothing,
    /// A status that Larder did not write. Contains the reason.
    Corrupt(String),
}

#[derive(Debug)]
struct Entry {
    name: ObjectName,
    version: u64,
    status: IndexedStatus,
}

/// The index of image caches by their ID.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: Mutex<HashMap<CacheId, Entry>>,
    /// `true` once every object of the cluster was seen.
    complete: watch::Sender<bool>,
}

impl Index {
    fn entries(&self) -> MutexGuard<'_, HashMap<CacheId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a version of an object, unless the index has a later one.
    pub(super) fn note(&self, id: CacheId, name: ObjectName, version: u64, mut status: IndexedStatus) {
        if let IndexedStatus::Record(stored) = &mut status
            && let Some(content) = &mut Arc::make_mut(stored).record.content
        {
            content.layers = Vec::new();
        }
        let mut entries = self.entries();
        // Versions of one object increase (KEP-5504). The watch can be slower than the response to a write of
        // this process.
        if entries.get(&id).is_none_or(|entry| entry.version <= version) {
            entries.insert(id, Entry { name, version, status });
        }
    }

    /// Removes an object and returns its record.
    pub(super) fn forget(&self, id: CacheId) -> Option<Arc<Stored>> {
        match self.entries().remove(&id)?.status {
            IndexedStatus::Record(stored) => Some(stored),
            IndexedStatus::Nothing | IndexedStatus::Corrupt(_) => None,
        }
    }

    /// Notes that every object was seen.
    pub(super) fn complete(&self) {
        self.complete.send_replace(true);
    }

    /// Returns the IDs of all objects.
    pub(super) fn ids(&self) -> Vec<CacheId> {
        self.entries().keys().copied().collect()
    }

    /// Returns namespace and name of an object.
    pub(super) fn name(&self, id: CacheId) -> Option<ObjectName> {
        self.entries().get(&id).map(|entry| entry.name.clone())
    }

    /// Returns the status of an object.
    pub(super) fn get(&self, id: CacheId) -> Option<IndexedStatus> {
        self.entries().get(&id).map(|entry| entry.status.clone())
    }

    /// Returns the status of all objects; `None` if not every object was seen within `patience`.
    pub(super) async fn all(&self, patience: Duration) -> Option<Vec<(ObjectName, IndexedStatus)>> {
        let mut complete = self.complete.subscribe();
        tokio::time::timeout(patience, complete.wait_for(|complete| *complete)).await.ok()?.ok()?;
        let entries = self.entries();
        Some(entries.values().map(|entry| (entry.name.clone(), entry.status.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_earlier_version_does_not_replace_a_later_one() {
        let index = Index::default();
        let id = CacheId::random();
        let name = ("team-a".to_owned(), "web".to_owned());
        assert!(index.all(Duration::ZERO).await.is_none());
        index.note(id, name.clone(), 7, IndexedStatus::Corrupt("seven".to_owned()));
        index.note(id, name.clone(), 6, IndexedStatus::Nothing);
        assert!(matches!(index.get(id), Some(IndexedStatus::Corrupt(what)) if what == "seven"));
        index.note(id, name.clone(), 8, IndexedStatus::Nothing);
        assert!(matches!(index.get(id), Some(IndexedStatus::Nothing)));
        index.complete();
        assert_eq!((index.name(id), index.all(Duration::ZERO).await.unwrap().len()), (Some(name), 1));
        assert!(index.forget(id).is_none());
        assert!(index.ids().is_empty());
    }
}
