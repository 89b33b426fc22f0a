//! Field ownership: `metadata.managedFields` (apimachinery pkg/util/managedfields, structured-merge-diff
//! merge/update.go).
//!
//! Ownership is tracked for leaves, for whole atomic lists, and for items of keyed lists.

use serde_json::{Map, Value, json};

use super::fields::{self, FieldSet, Path};
use super::object::{metadata, now};
use super::shape::{ListKind, Shape};

/// Manager and part of a write.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    pub(super) manager: String,
    pub(super) part: Part,
    pub(super) api_version: String,
}

/// Part of an object that a write can change (`GetResetFields` of the kinds' strategies).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The whole object, for a kind without status subresource.
    Whole,
    /// Everything except the status.
    Main,
    /// Only the status.
    Status,
}

impl Part {
    fn subresource(self) -> &'static str {
        if self == Part::Status { "status" } else { "" }
    }
}

/// Fields owned by one manager.
#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn is(&self, writer: &Writer, operation: &str) -> bool {
        self.manager == writer.manager
            && self.operation == operation
            && self.subresource == writer.part.subresource()
            && self.api_version == writer.api_version
    }
}

fn read(object: &Value) -> Vec<Entry> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(entry, "manager"),
            operation: text(entry, "operation"),
            api_version: text(entry, "apiVersion"),
            subresource: text(entry, "subresource"),
            time: text(entry, "time"),
            fields: fields::decode(&entry["fieldsV1"]),
        })
        .collect()
}

fn write(object: &mut Value, entries: &[Entry]) {
    let entries: Vec<_> = entries.iter().filter(|entry| !entry.fields.is_empty()).collect();
    let written = entries.iter().map(|entry| {
        let mut written = json!({
            "manager": entry.manager, "operation": entry.operation, "apiVersion": entry.api_version,
            "time": entry.time, "fieldsType": "FieldsV1", "fieldsV1": fields::encode(&entry.fields),
        });
        if !entry.subresource.is_empty() {
            written["subresource"] = entry.subresource.clone().into();
        }
        written
    });
    let written: Vec<Value> = written.collect();
    if written.is_empty() {
        metadata(object).remove("managedFields");
    } else {
        metadata(object).insert("managedFields".to_owned(), written.into());
    }
}

/// Records the fields that `writer` changed from `live` to `new`. Previous owners lose the changed fields.
pub(super) fn note_update(live: Option<&Value>, new: &mut Value, shape: Shape<'_>, writer: &Writer) {
    let mut before = FieldSet::new();
    if let Some(live) = live {
        leaves(live, shape, &mut Vec::new(), &mut before);
    }
    let mut after = FieldSet::new();
    leaves(new, shape, &mut Vec::new(), &mut after);
    let own = |set: FieldSet| restrict(set, writer.part);
    let (before, after) = (own(before), own(after));
    let changed: FieldSet = after
        .iter()
        .filter(|path| {
            !before.contains(*path) || live.and_then(|live| fields::get(live, path)) != fields::get(new, path)
        })
        .cloned()
        .collect();
    let removed: FieldSet = before.difference(&after).cloned().collect();
    let mut entries = live.map(read).unwrap_or_default();
    // An empty list from a client (`metadata.managedFields: [{}]` or `[]`) removes all owners.
    if live.is_some() && new["metadata"]["managedFields"].as_array().is_some_and(Vec::is_empty) {
        entries.clear();
    }
    if !changed.is_empty() || !removed.is_empty() {
        for entry in &mut entries {
            let own = entry.is(writer, "Update");
            entry.fields.retain(|path| !removed.contains(path) && (own || !changed.contains(path)));
        }
        add(&mut entries, writer, "Update", |fields| fields.extend(changed.iter().cloned()));
    }
    write(new, &entries);
}

fn add(entries: &mut Vec<Entry>, writer: &Writer, operation: &str, change: impl FnOnce(&mut FieldSet)) {
    let at = entries.iter().position(|entry| entry.is(writer, operation)).unwrap_or_else(|| {
        entries.push(Entry {
            manager: writer.manager.clone(),
            operation: operation.to_owned(),
            api_version: writer.api_version.clone(),
            subresource: writer.part.subresource().to_owned(),
            time: String::new(),
            fields: FieldSet::new(),
        });
        entries.len() - 1
    });
    let before = entries[at].fields.clone();
    change(&mut entries[at].fields);
    if entries[at].fields != before || entries[at].time.is_empty() {
        entries[at].time = now();
    }
}

/// Fields that an apply would change although other managers own them, with their owners.
pub(super) type Conflicts = Vec<(String, Path)>;

/// Merges an applied configuration into `live`. Fields that `writer` applied before but no longer applies are
/// removed, unless another manager owns them.
pub(super) fn apply(
    live: Option<&Value>,
    applied: &Value,
    shape: Shape<'_>,
    writer: &Writer,
    force: bool,
) -> Result<Value, Conflicts> {
    let mut wanted = FieldSet::new();
    leaves(applied, shape, &mut Vec::new(), &mut wanted);
    let wanted = restrict(wanted, writer.part);
    let mut entries = live.map(read).unwrap_or_default();
    let mut merged = live.cloned().unwrap_or_else(|| json!({}));
    for path in &wanted {
        // `applied` might contain more than this subresource.
        merge_path(&mut merged, applied, path, shape);
    }
    for field in ["apiVersion", "kind"] {
        merged[field] = applied[field].clone();
    }
    for field in ["name", "namespace"] {
        if let Some(value) = applied["metadata"].get(field) {
            metadata(&mut merged).insert(field.to_owned(), value.clone());
        }
    }
    let empty = json!({});
    let before = live.unwrap_or(&empty);
    let mut conflicts = Conflicts::new();
    for entry in entries.iter_mut().filter(|entry| !entry.is(writer, "Apply")) {
        let lost: FieldSet = entry
            .fields
            .intersection(&wanted)
            .filter(|path| !path.last().is_some_and(|step| step.starts_with("k:")))
            .filter(|path| fields::get(before, path) != fields::get(&merged, path))
            .cloned()
            .collect();
        if force {
            entry.fields.retain(|path| !lost.contains(path));
        } else {
            conflicts.extend(lost.into_iter().map(|path| (entry.describe(), path)));
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    let abandoned: Vec<Path> = entries
        .iter()
        .filter(|entry| entry.is(writer, "Apply"))
        .flat_map(|entry| entry.fields.difference(&wanted).cloned())
        .collect();
    let others: Vec<_> = entries.iter().filter(|entry| !entry.is(writer, "Apply")).collect();
    for path in abandoned.iter().rev() {
        let kept = others.iter().any(|entry| entry.fields.iter().any(|other| other.starts_with(path)));
        if !kept && !wanted.iter().any(|other| other.starts_with(path)) {
            fields::remove(&mut merged, path);
        }
    }
    add(&mut entries, writer, "Apply", |fields| *fields = wanted);
    write(&mut merged, &entries);
    Ok(merged)
}

impl Entry {
    fn describe(&self) -> String {
        let subresource = if self.subresource.is_empty() {
            String::new()
        } else {
            format!(" with subresource \"{}\"", self.subresource)
        };
        // apimachinery pkg/util/managedfields/internal/conflict.go, printManager: a manager that applied is
        // shown without a version. BuildManagerIdentifier in managedfields.go omits the time, so the text
        // never contains one.
        let version = match self.operation.as_str() {
            "Update" => format!(" using {}", self.api_version),
            _ => String::new(),
        };
        format!("\"{}\"{subresource}{version}", self.manager)
    }
}

/// Merges a configuration into an object without recording an owner.
pub(super) fn merge(object: &Value, applied: &Value, shape: Shape<'_>) -> Value {
    let mut wanted = FieldSet::new();
    leaves(applied, shape, &mut Vec::new(), &mut wanted);
    let mut merged = object.clone();
    for path in &wanted {
        merge_path(&mut merged, applied, path, shape);
    }
    merged
}

/// Copies the value at `path` from `applied` to `merged`, and creates missing parents.
fn merge_path(merged: &mut Value, applied: &Value, path: &[String], shape: Shape<'_>) {
    let Some((step, rest)) = path.split_first() else {
        *merged = applied.clone();
        return;
    };
    let Some(source) = fields::get(applied, std::slice::from_ref(step)) else { return };
    let (sort, name) = step.split_at(2);
    if sort == "f:" {
        if !merged.is_object() {
            *merged = Value::Object(Map::new());
        }
        let child = &mut merged[name];
        let nothing = source.as_object().is_some_and(Map::is_empty) && !shape.field(name).atomic();
        if rest.is_empty() && nothing && child.is_object() {
            // An empty map adds nothing to the existing map.
        } else if rest.is_empty() {
            *child = source.clone();
        } else {
            merge_path(child, source, rest, shape.field(name));
        }
        return;
    }
    if !merged.is_array() {
        *merged = Value::Array(Vec::new());
    }
    let Some(items) = merged.as_array_mut() else { return };
    let same = |item: &Value| match shape.list() {
        ListKind::Map(keys) => shape.key(&keys, item) == *step,
        _ => item == source,
    };
    let at = items.iter().position(same).unwrap_or_else(|| {
        // The item has no value of its own: its keys are leaves below it.
        items.push(if sort == "k:" { json!({}) } else { source.clone() });
        items.len() - 1
    });
    if sort == "k:" {
        if rest.is_empty() {
            // The keys come first, so that the next path finds the item.
            if let (ListKind::Map(keys), Some(item)) = (shape.list(), items[at].as_object_mut()) {
                for key in keys {
                    if let Some(value) = source.get(&key) {
                        item.insert(key, value.clone());
                    }
                }
            }
        } else {
            merge_path(&mut items[at], source, rest, shape.item());
        }
    }
}

/// Collects the leaves of an object that can be owned.
fn leaves(value: &Value, shape: Shape<'_>, path: &mut Path, set: &mut FieldSet) {
    match value {
        Value::Object(fields) if !fields.is_empty() && !shape.atomic() => {
            for (name, child) in fields {
                if ownerless(path, name) {
                    continue;
                }
                path.push(format!("f:{name}"));
                leaves(child, shape.field(name), path, set);
                path.pop();
            }
        }
        Value::Array(items) => match shape.list() {
            ListKind::Atomic => {
                set.insert(path.clone());
            }
            ListKind::Set => {
                for item in items {
                    path.push(format!("v:{item}"));
                    set.insert(path.clone());
                    path.pop();
                }
            }
            ListKind::Map(keys) => {
                for item in items {
                    path.push(shape.key(&keys, item));
                    set.insert(path.clone());
                    leaves(item, shape.item(), path, set);
                    path.pop();
                }
            }
        },
        _ if path.is_empty() => {}
        _ => {
            set.insert(path.clone());
        }
    }
}

/// Reports whether a field is never owned (apimachinery pkg/util/managedfields/internal/stripmeta.go).
fn ownerless(path: &[String], name: &str) -> bool {
    match path {
        [] => matches!(name, "apiVersion" | "kind"),
        [metadata] if metadata == "f:metadata" => matches!(
            name,
            "name"
                | "namespace"
                | "creationTimestamp"
                | "deletionTimestamp"
                | "deletionGracePeriodSeconds"
                | "selfLink"
                | "uid"
                | "generation"
                | "managedFields"
                | "resourceVersion"
        ),
        _ => false,
    }
}

fn restrict(mut set: FieldSet, part: Part) -> FieldSet {
    let status = |path: &Path| path.first().is_some_and(|step| step == "f:status");
    match part {
        Part::Whole => {}
        Part::Main => set.retain(|path| !status(path)),
        Part::Status => set.retain(status),
    }
    set
}
