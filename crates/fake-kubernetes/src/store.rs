//! What the server keeps: every object, and every change since the last compaction.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::access::Access;
use super::builtin;
use super::components::driver::Driver;
use super::components::kubelet::Nodes;
use super::components::{Timers, Timing};
use super::fault::Faults;
use super::kind::{Form, Id, Kind};
use super::object::{metadata, text};
use super::read::Page;
use super::status::Refusal;
use super::write::definition;

/// One change of one object.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) id: Id,
    pub(super) before: Option<Arc<Value>>,
    /// None when it went away.
    pub(super) after: Option<Arc<Value>>,
}

/// The state of a server.
#[derive(Debug)]
pub(super) struct State {
    /// One counter for all kinds, as etcd's.
    pub(super) revision: u64,
    /// Changes up to here are forgotten.
    pub(super) compacted: u64,
    pub(super) kinds: Vec<Arc<Kind>>,
    pub(super) objects: BTreeMap<Id, Arc<Value>>,
    pub(super) changes: Vec<Change>,
    pub(super) pages: HashMap<String, Page>,
    pub(super) access: Access,
    pub(super) faults: Faults,
    pub(super) timing: Timing,
    pub(super) timers: Timers,
    pub(super) node: Nodes,
    pub(super) driver: Driver,
}

impl State {
    /// An empty one; volumes and pods are put below `root`.
    pub(super) fn new(root: &Path, timing: Timing) -> Self {
        State {
            // Zero means "any version" to a reader, so a server never has it.
            revision: 100,
            compacted: 100,
            kinds: builtin::kinds(),
            objects: BTreeMap::new(),
            changes: Vec::new(),
            pages: HashMap::new(),
            access: Access::default(),
            faults: Faults::default(),
            timing,
            timers: Timers::default(),
            node: Nodes::new(root),
            driver: Driver::new(root),
        }
    }

    /// The kind behind a path; 404 where there is none.
    pub(super) fn kind(&self, group: &str, version: &str, plural: &str) -> Result<Arc<Kind>, Refusal> {
        let mut served = self.kinds.iter().filter(|kind| kind.group == group && kind.version == version);
        served.find(|kind| kind.plural == plural).cloned().ok_or_else(Refusal::no_route)
    }

    /// The kind of an object, whatever its version.
    pub(super) fn kind_of(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        self.kinds.iter().find(|kind| kind.is(group, plural)).cloned()
    }

    pub(super) fn get(&self, id: &Id) -> Option<&Arc<Value>> {
        self.objects.get(id)
    }

    /// Objects of a kind in a namespace, in all of them where none is given.
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

    /// Writes an object under a new revision.
    pub(super) fn put(&mut self, id: Id, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        metadata(&mut object).insert("resourceVersion".to_owned(), self.revision.to_string().into());
        let object = Arc::new(object);
        let before = self.objects.insert(id.clone(), Arc::clone(&object));
        self.note(id, before, Some(Arc::clone(&object)));
        object
    }

    /// Takes an object away. What was there last carries the revision of its end, as a watch tells it.
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

    /// Serves exactly the custom resources that are defined.
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

    /// Forgets the past: who wants to read on from an old version, or the next page of an old list, is told 410. A watch that
    /// runs has been told everything, so it goes on.
    pub(super) fn compact(&mut self) {
        self.pages.clear();
        self.compacted = self.revision;
    }

    /// Whether a namespace takes new objects.
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
