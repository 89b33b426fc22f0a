//! Get, list, and the events of watches.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::kind::{Form, Id, Kind};
use super::object::metadata;
use super::select::Selection;
use super::status::Refusal;
use super::store::{Change, Page, State};

/// Objects to list or watch.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    pub(super) kind: Arc<Kind>,
    /// Namespace of the objects; empty for all.
    pub(super) namespace: String,
    pub(super) selection: Selection,
}

/// Parameters of a list.
#[derive(Clone, Debug, Default)]
pub(super) struct ListOptions {
    pub(super) limit: usize,
    pub(super) continues: String,
    pub(super) version: String,
    pub(super) exact: bool,
}

impl Scope {
    fn holds(&self, id: &Id) -> bool {
        self.kind.is(&id.group, &id.plural) && (self.namespace.is_empty() || id.namespace == self.namespace)
    }
}

impl State {
    pub(super) fn read(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Arc<Value>, Refusal> {
        self.get(&kind.id(namespace, name)).cloned().ok_or_else(|| Refusal::not_found(kind, name))
    }

    /// Returns all objects that the scope selects now.
    pub(super) fn select(&self, scope: &Scope) -> Vec<Arc<Value>> {
        let all = self.all(&scope.kind.group, &scope.kind.plural, &scope.namespace);
        all.filter(|object| scope.selection.matches(object)).cloned().collect()
    }

    /// Returns a list, or a page of one. All pages show the state at the first page (apiserver
    /// pkg/storage/etcd3/store.go).
    pub(super) fn list(&mut self, scope: &Scope, options: &ListOptions) -> Result<Value, Refusal> {
        let (revision, mut items) = if options.continues.is_empty() {
            self.items_at(scope, options)?
        } else {
            let page = self.pages.get(&options.continues).ok_or_else(|| {
                Refusal::expired(
                    "The provided continue parameter is too old to display a consistent list result. You can start a new \
                     list without the continue parameter.",
                )
            })?;
            (page.revision, page.rest.clone())
        };
        let mut meta = json!({"resourceVersion": revision.to_string()});
        if options.limit > 0 && items.len() > options.limit {
            let rest = items.split_off(options.limit);
            meta["remainingItemCount"] = rest.len().into();
            let token = format!("page-{revision}-{}", self.pages.len());
            meta["continue"] = token.clone().into();
            self.pages.insert(token, Page { revision, rest });
        }
        let mut items: Vec<_> = items.iter().map(|object| object.as_ref().clone()).collect();
        if let Form::BuiltIn(_) = scope.kind.form {
            // Typed lists omit the fields that all items share; lists of custom resources do not.
            for fields in items.iter_mut().filter_map(Value::as_object_mut) {
                fields.remove("apiVersion");
                fields.remove("kind");
            }
        }
        Ok(json!({
            "apiVersion": scope.kind.api_version(),
            "kind": format!("{}List", scope.kind.kind),
            "metadata": meta,
            "items": items,
        }))
    }

    fn items_at(&self, scope: &Scope, options: &ListOptions) -> Result<(u64, Vec<Arc<Value>>), Refusal> {
        let requested = version(&options.version)?;
        self.check_not_ahead(requested)?;
        if !options.exact || requested == self.revision {
            return Ok((self.revision, self.select(scope)));
        }
        if requested < self.compacted {
            return Err(Refusal::expired(&self.too_old(requested)));
        }
        let mut objects: BTreeMap<&Id, &Arc<Value>> = self.objects.iter().collect();
        for change in self.changes.iter().rev().take_while(|change| change.revision > requested) {
            match &change.before {
                Some(before) => objects.insert(&change.id, before),
                None => objects.remove(&change.id),
            };
        }
        let held =
            objects.into_iter().filter(|(id, object)| scope.holds(id) && scope.selection.matches(object));
        Ok((requested, held.map(|(_, object)| Arc::clone(object)).collect()))
    }

    /// Refuses a version from the future (apiserver pkg/storage/errors.go, NewTooLargeResourceVersionError).
    pub(super) fn check_not_ahead(&self, requested: u64) -> Result<(), Refusal> {
        if requested <= self.revision {
            return Ok(());
        }
        let message = format!("Too large resource version: {requested}, current: {}", self.revision);
        let mut refusal = Refusal::new(504, "Timeout", message);
        refusal.retry_after = Some(1);
        Err(refusal)
    }

    fn too_old(&self, requested: u64) -> String {
        format!("too old resource version: {requested} ({})", self.compacted)
    }

    /// Refuses a watch from a version before the compaction (apiserver pkg/storage/cacher/cacher.go: an event
    /// of the watch, not its status).
    pub(super) fn check_not_compacted(&self, seen: u64) -> Result<(), Refusal> {
        if seen < self.compacted { Err(Refusal::expired(&self.too_old(seen))) } else { Ok(()) }
    }

    /// Returns the watch events for the changes after `seen`.
    pub(super) fn changes_since(&self, scope: &Scope, seen: u64) -> Vec<Value> {
        let from = self.changes.partition_point(|change| change.revision <= seen);
        let changes = self.changes[from..].iter().filter(|change| scope.holds(&change.id));
        changes.filter_map(|change| event(scope, change)).collect()
    }
}

/// Converts a change to a watch event. An object that starts to match a selector is added to the watch; one
/// that stops matching is deleted from it (apiserver pkg/storage/cacher/cache_watcher.go,
/// convertToWatchEvent).
fn event(scope: &Scope, change: &Change) -> Option<Value> {
    let matching = |object: &&Arc<Value>| scope.selection.matches(object);
    let (before, after) = (change.before.as_ref().filter(matching), change.after.as_ref().filter(matching));
    let (kind, object) = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => ("ADDED", after.as_ref().clone()),
        (Some(_), Some(after)) => ("MODIFIED", after.as_ref().clone()),
        (Some(before), None) => {
            let mut last = before.as_ref().clone();
            metadata(&mut last).insert("resourceVersion".to_owned(), change.revision.to_string().into());
            ("DELETED", last)
        }
    };
    Some(json!({"type": kind, "object": object}))
}

/// Parses a resource version. An empty text is 0, which means any version.
pub(super) fn version(text: &str) -> Result<u64, Refusal> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse()
        .map_err(|_| Refusal::bad_request(format!("Invalid value: \"{text}\": invalid resource version")))
}

/// Returns only the metadata of an object, for `Accept: …;as=PartialObjectMetadata`.
pub(super) fn partial(object: &Value) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
}
