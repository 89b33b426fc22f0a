//! Data of the server: all objects, and all changes since the last compaction.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::driver::Driver;
use super::fault::Faults;
use super::kind::{Form, Id, Kind};
use super::node::Nodes;
use super::object::{metadata, text};
use super::status::Refusal;
use super::timing::{Timers, Timing};
use super::tokens::Tokens;
use super::{builtin, definition};

/// One change to one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) id: Id,
    pub(super) before: Option<Arc<Value>>,
    /// State after the change. `None` if the object was deleted.
    pub(super) after: Option<Arc<Value>>,
}

/// Remaining items of a list that is read page by page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) revision: u64,
    pub(super) rest: Vec<Arc<Value>>,
}

/// Complete state of a server.
#[derive(Debug)]
pub(super) struct State {
    /// Revision counter for all kinds, as in etcd.
    pub(super) revision: u64,
    /// Changes up to this revision are discarded.
    pub(super) compacted: u64,
    pub(super) kinds: Vec<Arc<Kind>>,
    pub(super) objects: BTreeMap<Id, Arc<Value>>,
    pub(super) changes: Vec<Change>,
    pub(super) pages: HashMap<String, Page>,
    pub(super) tokens: Tokens,
    pub(super) faults: Faults,
    pub(super) timing: Timing,
    pub(super) timers: Timers,
    pub(super) node: Nodes,
    pub(super) driver: Driver,
}

impl State {
    /// Creates an empty state. Volumes and pods are placed below `root`.
    pub(super) fn new(root: &Path, timing: Timing) -> Self {
        State {
            // Zero means "any version" to a reader, so a server never uses it.
            revision: 100,
            compacted: 100,
            kinds: builtin::kinds(),
            objects: BTreeMap::new(),
            changes: Vec::new(),
            pages: HashMap::new(),
            tokens: Tokens::default(),
            faults: Faults::default(),
            timing,
            timers: Timers::default(),
            node: Nodes::new(root),
            driver: Driver::new(root),
        }
    }

    /// Returns the kind at a path. Fails with 404 if there is none.
    pub(super) fn kind(&self, group: &str, version: &str, plural: &str) -> Result<Arc<Kind>, Refusal> {
        let mut served = self.kinds.iter().filter(|kind| kind.group == group && kind.version == version);
        served.find(|kind| kind.plural == plural).cloned().ok_or_else(Refusal::no_route)
    }

    /// Returns the kind of an object in any version.
    pub(super) fn kind_of(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.is(group, plural)).cloned()
    }

    pub(super) fn get(&self, id: &Id) -> Option<&Arc<Value>> {
        self.objects.get(id)
    }

    /// Returns the objects of a kind in a namespace. An empty namespace means all.
    pub(super) fn all<'a>(
        &'a self,
        group: &'a str,
        plural: &'a str,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Value>> {
        let first = Id::new(group, plural, namespace, "");
        let range = self.objects.range(first..).take_while(move |(id, _)| {
            id.is(group, plural) && (namespace.is_empty() || id.namespace == namespace)
        });
        range.map(|(_, object)| object)
    }

    /// Writes an object with a new revision.
    pub(super) fn put(&mut self, id: Id, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        metadata(&mut object).insert("resourceVersion".to_owned(), self.revision.to_string().into());
        let object = Arc::new(object);
        let before = self.objects.insert(id.clone(), Arc::clone(&object));
        self.note(id, before, Some(Arc::clone(&object)));
        object
    }

    /// Deletes an object. Its last state gets the revision of the deletion, as in watch events.
    pub(super) fn take(&mut self, id: &Id) -> Option<Arc<Value>> {
        let before = self.objects.remove(id)?;
        self.revision += 1;
        self.note(id.clone(), Some(Arc::clone(&before)), None);
        Some(before)
    }

    fn note(&mut self, id: Id, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        let definitions = id.plural == "customresourcedefinitions";
        self.changes.push(Change { revision: self.revision, id, before, after });
        if definitions {
            self.serve_definitions();
        }
    }

    /// Serves exactly the custom resources that have a definition.
    fn serve_definitions(&mut self) {
        self.kinds.retain(|kind| matches!(kind.form, Form::BuiltIn(_)));
        let definitions: Vec<_> =
            self.all("apiextensions.k8s.io", "customresourcedefinitions", "").cloned().collect();
        for found in definitions {
            self.kinds.extend(definition::kinds(&found).into_iter().flatten());
        }
        let served = &self.kinds;
        let gone: Vec<_> = self
            .objects
            .keys()
            .filter(|id| !served.iter().any(|kind| kind.is(&id.group, &id.plural)))
            .cloned()
            .collect();
        for id in gone {
            self.take(&id);
        }
    }

    /// Discards old changes and pages: a request that continues from one is refused with 410. A running watch
    /// has already received everything, so it continues.
    pub(super) fn compact(&mut self) {
        self.pages.clear();
        self.compacted = self.revision;
    }

    /// Checks that a namespace accepts new objects.
    pub(super) fn open_namespace(&self, kind: &Kind, namespace: &str, name: &str) -> Result<(), Refusal> {
        if !kind.namespaced {
            return Ok(());
        }
        let Some(found) = self.get(&Id::new("", "namespaces", "", namespace)) else {
            let namespaces = self.kind("", "v1", "namespaces")?;
            return Err(Refusal::not_found(&namespaces, namespace));
        };
        if text(found, "/status/phase") == "Terminating" {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(Refusal::forbidden(kind, name, &why));
        }
        Ok(())
    }
}
