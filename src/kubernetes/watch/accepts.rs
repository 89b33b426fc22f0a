//! The namespaces and the image caches that they accept, according to their annotations.

use std::collections::HashMap;

use futures_util::Stream;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};

use crate::kubernetes::names::{ACCEPT_FROM, is_listed};
use larder_model::image_cache::TenantName;

/// Watches the metadata of all namespaces.
pub(super) fn watch(
    client: &Client,
) -> impl Stream<Item = watcher::Result<Event<PartialObjectMeta<Namespace>>>> + Send + use<> {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    watcher::watcher(api, watcher::Config::default()).default_backoff()
}

/// The annotation [`ACCEPT_FROM`] of each namespace that has one.
#[derive(Debug, Default)]
pub(super) struct Accepts {
    lists: HashMap<String, String>,
    /// The annotations of the first list after a start of the watch, until that list is complete.
    next: HashMap<String, String>,
    complete: bool,
}

impl Accepts {
    /// Applies an event. Returns whether an annotation has changed.
    pub(super) fn apply(&mut self, event: Event<PartialObjectMeta<Namespace>>) -> bool {
        match event {
            Event::Init => {
                self.next.clear();
                false
            }
            Event::InitApply(namespace) => {
                if let Some(list) = namespace.annotations().get(ACCEPT_FROM) {
                    self.next.insert(namespace.name_any(), list.clone());
                }
                false
            }
            Event::InitDone => {
                let next = std::mem::take(&mut self.next);
                let changed = !self.complete || next != self.lists;
                (self.lists, self.complete) = (next, true);
                changed
            }
            Event::Apply(namespace) => {
                let name = namespace.name_any();
                match namespace.annotations().get(ACCEPT_FROM) {
                    Some(list) => self.lists.insert(name, list.clone()).as_ref() != Some(list),
                    None => self.lists.remove(&name).is_some(),
                }
            }
            Event::Delete(namespace) => self.lists.remove(&namespace.name_any()).is_some(),
        }
    }

    /// Reports whether a namespace accepts image caches of a tenant; `None` before the first list is
    /// complete. A namespace that does not exist accepts none.
    pub(super) fn accepts(&self, namespace: &str, tenant: &TenantName) -> Option<bool> {
        let list = self.lists.get(namespace).map(String::as_str);
        self.complete.then(|| is_listed(list, tenant.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(name: &str, list: Option<&str>) -> PartialObjectMeta<Namespace> {
        let annotations = list.map_or(json!({"other": "x"}), |list| json!({ACCEPT_FROM: list}));
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}})).unwrap()
    }

    #[test]
    fn lists_follow_the_annotations() {
        let (mut accepts, team) = (Accepts::default(), "team-a".parse().unwrap());
        assert_eq!(accepts.accepts("b", &team), None, "nothing was seen yet");
        assert!(!accepts.apply(Event::Init));
        assert!(!accepts.apply(Event::InitApply(namespace("b", Some("team-a")))));
        assert!(accepts.apply(Event::InitDone));
        assert_eq!(accepts.accepts("b", &team), Some(true));
        assert_eq!(accepts.accepts("c", &team), Some(false));
        assert!(!accepts.apply(Event::Apply(namespace("b", Some("team-a")))), "nothing has changed");
        assert!(accepts.apply(Event::Apply(namespace("b", None))));
        assert!(!accepts.apply(Event::Apply(namespace("d", None))));
        assert!(accepts.apply(Event::Apply(namespace("d", Some("*")))));
        assert_eq!((accepts.accepts("b", &team), accepts.accepts("d", &team)), (Some(false), Some(true)));
        assert!(accepts.apply(Event::Delete(namespace("d", None))));
        // After a restart of the watch, annotations that were removed in the meantime are gone.
        assert!(accepts.apply(Event::Apply(namespace("b", Some("*")))));
        accepts.apply(Event::Init);
        assert_eq!(accepts.accepts("b", &team), Some(true), "not before it is complete");
        assert!(accepts.apply(Event::InitDone));
        assert_eq!(accepts.accepts("b", &team), Some(false));
    }
}
