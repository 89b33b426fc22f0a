//! A watch whose objects are kept in a store.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::StreamExt as _;
use kube::Resource;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::reflector::{self, Lookup, Store};
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Keeps the objects of a watch in a store for as long as the task in `watches` runs. Each change wakes the
/// agent.
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
