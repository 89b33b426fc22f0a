//! The image caches of the cluster as a watch saw them last.
//!
//! A watch is behind the API server, by milliseconds or by an outage. So this index finds what needs attention; the caller
//! reads the object again before it acts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::caches::store::Stored;
use larder_model::image_cache::CacheId;

/// Namespace and name of an object. Those of one UID never change.
pub(super) type Place = (String, String);

/// What the status of an object says.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// A record. Histories of layers are left out: they are the largest part of it, and nobody looks for them here.
    Record(Arc<Stored>),
    /// Nothing yet, or that the order is refused.
    Nothing,
    /// Something that Larder did not write. Says what.
    Corrupt(String),
}

#[derive(Debug)]
struct Entry {
    place: Place,
    version: u64,
    said: Said,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Seen {
    entries: Mutex<HashMap<CacheId, Entry>>,
    /// Whether every object of the cluster was seen once.
    complete: watch::Sender<bool>,
}

impl Seen {
    fn entries(&self) -> MutexGuard<'_, HashMap<CacheId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a version of an object, unless a later one is here.
    pub(super) fn note(&self, id: CacheId, place: Place, version: u64, mut said: Said) {
        if let Said::Record(stored) = &mut said
            && let Some(content) = &mut Arc::make_mut(stored).record.content
        {
            content.layers = Vec::new();
        }
        let mut entries = self.entries();
        // Versions of one object grow (KEP-5504): the watch may be slower than the answer to a write of our own.
        if entries.get(&id).is_none_or(|entry| entry.version <= version) {
            entries.insert(id, Entry { place, version, said });
        }
    }

    /// Forgets an object, and returns the record that it had.
    pub(super) fn forget(&self, id: CacheId) -> Option<Arc<Stored>> {
        match self.entries().remove(&id)?.said {
            Said::Record(stored) => Some(stored),
            Said::Nothing | Said::Corrupt(_) => None,
        }
    }

    /// All objects were seen.
    pub(super) fn complete(&self) {
        self.complete.send_replace(true);
    }

    /// The IDs of all objects.
    pub(super) fn ids(&self) -> Vec<CacheId> {
        self.entries().keys().copied().collect()
    }

    /// Where an object is.
    pub(super) fn place(&self, id: CacheId) -> Option<Place> {
        self.entries().get(&id).map(|entry| entry.place.clone())
    }

    /// What an object says.
    pub(super) fn get(&self, id: CacheId) -> Option<Said> {
        self.entries().get(&id).map(|entry| entry.said.clone())
    }

    /// What all objects say; `None` if not every object was seen once within `patience`.
    pub(super) async fn all(&self, patience: Duration) -> Option<Vec<(Place, Said)>> {
        let mut complete = self.complete.subscribe();
        tokio::time::timeout(patience, complete.wait_for(|complete| *complete)).await.ok()?.ok()?;
        let entries = self.entries();
        Some(entries.values().map(|entry| (entry.place.clone(), entry.said.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_earlier_version_does_not_replace_a_later_one() {
        let seen = Seen::default();
        let id = CacheId::random();
        let place = ("team-a".to_owned(), "web".to_owned());
        assert!(seen.all(Duration::ZERO).await.is_none());
        seen.note(id, place.clone(), 7, Said::Corrupt("seven".to_owned()));
        seen.note(id, place.clone(), 6, Said::Nothing);
        assert!(matches!(seen.get(id), Some(Said::Corrupt(what)) if what == "seven"));
        seen.note(id, place.clone(), 8, Said::Nothing);
        assert!(matches!(seen.get(id), Some(Said::Nothing)));
        seen.complete();
        assert_eq!((seen.place(id), seen.all(Duration::ZERO).await.unwrap().len()), (Some(place), 1));
        assert!(seen.forget(id).is_none());
        assert!(seen.ids().is_empty());
    }
}
