//! Create, replace, patch and apply: the steps of every write (apiserver pkg/registry/rest/create.go,
//! update.go, pkg/registry/generic/registry/store.go).
//!
//! decode → defaults → fields that only the server sets → validation → admission → managed fields → stored
//! with a new version.

mod delete;
mod patch;

use std::sync::Arc;

use serde_json::{Map, Value};

use super::builtin::{self, typed_metadata};
use super::cause::Cause;
use super::kind::{Form, Id, Kind};
use super::managed::{self, Part, Writer};
use super::object::{deleting, drop_null, finalizers, meta, metadata, now, tidy};
use super::rules;
use super::shape::Shape;
use super::status::Refusal;
use super::store::State;

pub(super) use delete::{DeleteOptions, Deleted};
pub(super) use patch::PatchBody;

/// Maximum size of an object, in bytes (etcd server/embed/config.go, DefaultMaxRequestBytes).
const MAX_OBJECT: usize = 3 << 19;

/// Handling of unknown fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Unknown {
    Refuse,
    /// Drops the fields with a warning, which is the default.
    #[default]
    Warn,
    Drop,
}

/// Options of a write.
#[derive(Clone, Debug, Default)]
pub(super) struct WriteOptions {
    pub(super) manager: String,
    pub(super) force: bool,
    pub(super) dry_run: bool,
    pub(super) unknown: Unknown,
    /// `true` if the body is the whole object, so that missing fields are removed.
    pub(super) whole: bool,
}

impl WriteOptions {
    /// Returns the options of a write by a component of the cluster.
    pub(super) fn component(name: &str) -> Self {
        WriteOptions { manager: name.to_owned(), ..WriteOptions::default() }
    }
}

/// Result of a write.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) object: Arc<Value>,
    pub(super) created: bool,
    pub(super) warnings: Vec<String>,
}

impl State {
    pub(super) fn create(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        given: Value,
        how: &WriteOptions,
    ) -> Result<Written, Refusal> {
        let (mut object, warnings) = decode(kind, namespace, None, given, how.unknown)?;
        if !meta(&object, "resourceVersion").is_empty() {
            return Err(Refusal::internal("resourceVersion should not be set on objects to be created"));
        }
        generate_name(&mut object);
        note(kind, None, &mut object, how, part(kind, false));
        let object = self.insert(kind, namespace, object, how)?;
        Ok(Written { object, created: true, warnings })
    }

    /// Performs the last steps of a create, and of an apply that creates.
    fn insert(
        &mut self,
        kind: &Arc<Kind>,
        namespace: &str,
        mut object: Value,
        how: &WriteOptions,
    ) -> Result<Arc<Value>, Refusal> {
        let name = meta(&object, "name").to_owned();
        self.open_namespace(kind, namespace, &name)?;
        let fields = metadata(&mut object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
            fields.remove(field);
        }
        fields.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
        fields.insert("creationTimestamp".to_owned(), now().into());
        if kind.generation {
            fields.insert("generation".to_owned(), 1.into());
        } else {
            fields.remove("generation");
        }
        if kind.status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        rules::mutate(self, kind, &mut object)?;
        rules::default(self, kind, &mut object);
        let id = kind.id(namespace, &name);
        if self.get(&id).is_some() {
            return Err(Refusal::already_exists(kind, &name));
        }
        validate(self, kind, &object, None)?;
        rules::admit(self, kind, namespace, &object)?;
        tidy(&mut object);
        if how.dry_run {
            return Ok(Arc::new(object));
        }
        Ok(self.put(id, object))
    }

    pub(super) fn replace(
        &mut self,
        kind: &Arc<Kind>,
        id: &Id,
        status: bool,
        given: Value,
        how: &WriteOptions,
    ) -> Result<Written, Refusal> {
        let (object, warnings) = decode(kind, &id.namespace, Some(&id.name), given, how.unknown)?;
        let Some(live) = self.get(id).cloned() else {
            if !kind.upsert || status {
                return Err(Refusal::not_found(kind, &id.name));
            }
            let mut object = object;
            note(kind, None, &mut object, how, part(kind, false));
            let object = self.insert(kind, &id.namespace, object, how)?;
            return Ok(Written { object, created: true, warnings });
        };
        let how = WriteOptions { whole: true, ..how.clone() };
        let object = self.commit(kind, id, &live, object, part(kind, status), &how, Owners::Note)?;
        Ok(Written { object, created: false, warnings })
    }

    /// Performs a write by a component of the cluster: reads, changes and stores an object.
    pub(super) fn amend(
        &mut self,
        id: &Id,
        status: bool,
        component: &str,
        change: impl FnOnce(&mut Value),
    ) -> Option<Arc<Value>> {
        let (kind, live) = (self.kind_of(&id.group, &id.plural)?, self.get(id).cloned()?);
        let mut object = live.as_ref().clone();
        change(&mut object);
        let how = WriteOptions::component(component);
        let stored = self.commit(&kind, id, &live, object, part(&kind, status), &how, Owners::Note);
        stored.inspect_err(|e| panic!("the write of {component} was refused: {}", e.message)).ok()
    }

    /// Stores a new state of `live`.
    #[expect(clippy::too_many_arguments, reason = "all inputs of a write meet here")]
    fn commit(
        &mut self,
        kind: &Arc<Kind>,
        id: &Id,
        live: &Arc<Value>,
        mut new: Value,
        part: Part,
        how: &WriteOptions,
        owners: Owners,
    ) -> Result<Arc<Value>, Refusal> {
        preconditions(kind, &id.name, live, &new, how.whole)?;
        restore_other_parts(live, &mut new, part);
        rules::default(self, kind, &mut new);
        no_new_finalizers(kind, live, &new)?;
        validate(self, kind, &new, Some(live))?;
        if kind.generation && part != Part::Status && specification(kind, live) != specification(kind, &new) {
            let generation = live["metadata"]["generation"].as_u64().unwrap_or(1);
            metadata(&mut new).insert("generation".to_owned(), (generation + 1).into());
        }
        if owners == Owners::Note {
            note(kind, Some(live), &mut new, how, part);
        }
        tidy(&mut new);
        metadata(&mut new).insert("resourceVersion".to_owned(), live["metadata"]["resourceVersion"].clone());
        // Without a change nothing is written: no new version and no event (apiserver
        // pkg/storage/etcd3/store.go).
        if timeless(&new) == timeless(live) {
            return Ok(Arc::clone(live));
        }
        if how.dry_run {
            return Ok(Arc::new(new));
        }
        let graceful = new["metadata"]["deletionGracePeriodSeconds"].as_u64().is_some_and(|left| left > 0);
        if deleting(&new) && finalizers(&new).is_empty() && !graceful {
            let last = self.put(id.clone(), new);
            self.take(id);
            return Ok(last);
        }
        Ok(self.put(id.clone(), new))
    }
}

/// `Note` records the owners of changed fields; `Known` means that they are already recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owners {
    Note,
    Known,
}

fn note(kind: &Kind, live: Option<&Value>, new: &mut Value, how: &WriteOptions, part: Part) {
    managed::note_update(live, new, Shape::of(kind), &writer(kind, how, part));
}

fn writer(kind: &Kind, how: &WriteOptions, part: Part) -> Writer {
    Writer { manager: how.manager.clone(), part, api_version: kind.api_version() }
}

fn part(kind: &Kind, status: bool) -> Part {
    match (kind.status, status) {
        (false, _) => Part::Whole,
        (true, false) => Part::Main,
        (true, true) => Part::Status,
    }
}

/// Decodes a body as an object of `kind`. Returns it with warnings about unknown fields.
fn decode(
    kind: &Kind,
    namespace: &str,
    name: Option<&str>,
    mut given: Value,
    unknown: Unknown,
) -> Result<(Value, Vec<String>), Refusal> {
    if !given.is_object() {
        return Err(Refusal::bad_request(
            "the object provided is unrecognized: json: cannot unmarshal into an object",
        ));
    }
    if given["apiVersion"] != kind.api_version() || given["kind"] != kind.kind {
        let message = format!(
            "the API version in the data ({}, Kind={}) does not match the expected API version ({}, Kind={})",
            given["apiVersion"].as_str().unwrap_or_default(),
            given["kind"].as_str().unwrap_or_default(),
            kind.api_version(),
            kind.kind
        );
        return Err(Refusal::bad_request(message));
    }
    drop_null(&mut given);
    let (mut object, dropped) = prune_unknown(kind, &given)?;
    let warnings: Vec<_> = dropped.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    if unknown == Unknown::Refuse && !warnings.is_empty() {
        // apimachinery pkg/runtime/error.go, strictDecodingError; facts/kubernetes.md, 1.
        let message = format!(
            "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            warnings.join(", ")
        );
        return Err(Refusal::bad_request(message));
    }
    if kind.namespaced {
        let own = meta(&object, "namespace");
        if !own.is_empty() && own != namespace {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        metadata(&mut object).insert("namespace".to_owned(), namespace.into());
    } else {
        metadata(&mut object).remove("namespace");
    }
    if let Some(name) = name {
        let own = meta(&object, "name");
        if own.is_empty() {
            metadata(&mut object).insert("name".to_owned(), name.into());
        } else if own != name {
            let message =
                format!("the name of the object ({own}) does not match the name on the URL ({name})");
            return Err(Refusal::bad_request(message));
        }
    }
    Ok((object, if unknown == Unknown::Warn { warnings } else { Vec::new() }))
}

/// Returns the object without unknown fields, and the paths of those fields.
fn prune_unknown(kind: &Kind, given: &Value) -> Result<(Value, Vec<String>), Refusal> {
    let unreadable = |e: String| {
        Refusal::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: {e}",
            kind.kind, kind.version, kind.kind
        ))
    };
    match &kind.form {
        Form::BuiltIn(typed) => {
            let known = typed(given).map_err(unreadable)?;
            let mut object = given.clone();
            let dropped = builtin::prune(&mut object, &known);
            Ok((object, dropped))
        }
        Form::Custom(custom) => {
            let mut object = given.clone();
            let mut dropped = custom.prune(&mut object);
            let mut own = given.get("metadata").cloned().unwrap_or_else(|| Map::new().into());
            let metadata = typed_metadata(&own).map_err(unreadable)?;
            dropped.extend(
                builtin::prune(&mut own, &metadata).into_iter().map(|path| format!("metadata.{path}")),
            );
            object["metadata"] = own;
            Ok((object, dropped))
        }
    }
}

/// Appends five random characters to `generateName` (apiserver pkg/storage/names/generate.go).
fn generate_name(object: &mut Value) {
    let prefix = meta(object, "generateName").to_owned();
    if meta(object, "name").is_empty() && !prefix.is_empty() {
        let random = uuid::Uuid::new_v4().simple().to_string();
        metadata(object).insert("name".to_owned(), format!("{prefix}{}", &random[..5]).into());
    }
}

/// Checks the version (optimistic locking) and the uid of the object.
fn preconditions(kind: &Kind, name: &str, live: &Value, new: &Value, whole: bool) -> Result<(), Refusal> {
    let (uid, version) = (meta(new, "uid"), meta(new, "resourceVersion"));
    if !uid.is_empty() && uid != meta(live, "uid") && !whole {
        // A patch has no preconditions; validation reports that the field is immutable (objectmeta.go).
        let cause = Cause::invalid("metadata.uid", &uid.into(), "field is immutable");
        return Err(Refusal::invalid(kind, name, &[cause]));
    }
    if !uid.is_empty() && uid != meta(live, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta(live, "uid")
        );
        return Err(Refusal::conflict(kind, name, &why));
    }
    if version.is_empty() && whole && !kind.unconditional {
        let cause = Cause::invalid("metadata.resourceVersion", &0.into(), "must be specified for an update");
        return Err(Refusal::invalid(kind, name, &[cause]));
    }
    if !version.is_empty() && version != meta(live, "resourceVersion") {
        return Err(Refusal::stale(kind, name));
    }
    Ok(())
}

/// Restores the parts that this write does not affect.
fn restore_other_parts(live: &Value, new: &mut Value, part: Part) {
    match part {
        Part::Status => {
            let (status, fields) = (new["status"].take(), new["metadata"]["managedFields"].take());
            *new = live.clone();
            new["status"] = status;
            if !fields.is_null() {
                metadata(new).insert("managedFields".to_owned(), fields);
            }
        }
        Part::Main => match live.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => {
                new.as_object_mut().map(|fields| fields.remove("status"));
            }
        },
        Part::Whole => {}
    }
    if new["status"].is_null() {
        new.as_object_mut().map(|fields| fields.remove("status"));
    }
    let fields = metadata(new);
    for field in ["uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
    {
        match live["metadata"].get(field) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
}

/// Refuses new finalizers on a deleted object (apimachinery pkg/api/validation/objectmeta.go,
/// ValidateObjectMetaAccessorUpdate).
fn no_new_finalizers(kind: &Kind, live: &Value, new: &Value) -> Result<(), Refusal> {
    let before = finalizers(live);
    let added: Vec<_> = finalizers(new).into_iter().filter(|name| !before.contains(name)).collect();
    if !deleting(live) || added.is_empty() {
        return Ok(());
    }
    let why = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{added:?}"
    );
    let cause = Cause::forbidden("metadata.finalizers", &why);
    Err(Refusal::invalid(kind, meta(live, "name"), &[cause]))
}

fn validate(state: &State, kind: &Kind, object: &Value, old: Option<&Value>) -> Result<(), Refusal> {
    if object.to_string().len() > MAX_OBJECT {
        return Err(Refusal::internal("etcdserver: request is too large"));
    }
    let causes = rules::validate(state, kind, object, old);
    if causes.is_empty() { Ok(()) } else { Err(Refusal::invalid(kind, meta(object, "name"), &causes)) }
}

/// Returns the part of an object whose changes count as generations: the spec, or everything except metadata
/// and status for a custom resource (apiextensions-apiserver pkg/registry/customresource/strategy.go).
fn specification(kind: &Kind, object: &Value) -> Value {
    match kind.form {
        Form::BuiltIn(_) => object["spec"].clone(),
        Form::Custom(_) => {
            let mut rest = object.clone();
            if let Some(fields) = rest.as_object_mut() {
                fields.remove("metadata");
                if kind.status {
                    fields.remove("status");
                }
            }
            rest
        }
    }
}

/// Returns an object without the times of its managed fields, which alone are not a change.
fn timeless(object: &Value) -> Value {
    let mut object = object.clone();
    let entries = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten() {
        entry["time"] = Value::Null;
    }
    object
}
