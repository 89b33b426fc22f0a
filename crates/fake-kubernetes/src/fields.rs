//! Sets of field paths and their encoded form, FieldsV1 (structured-merge-diff fieldpath/serialize.go).
//!
//! A path is a list of steps in the notation of FieldsV1: `f:name` is a field, `k:{"name":"x"}` an item of a
//! list by its keys, and `v:"x"` an item of a set.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// A path from the root of an object.
pub(super) type Path = Vec<String>;

/// Paths of leaves, and of the items of keyed lists.
pub(super) type FieldSet = BTreeSet<Path>;

/// Encodes a set as FieldsV1.
pub(super) fn encode(set: &FieldSet) -> Value {
    let mut root = Map::new();
    for path in set {
        let mut node = &mut root;
        for step in path {
            let child = node.entry(step.clone()).or_insert_with(|| Value::Object(Map::new()));
            node = child.as_object_mut().expect("all values are maps");
        }
        let extended = set.range(path.clone()..).nth(1).is_some_and(|next| next.starts_with(path));
        if extended {
            node.insert(".".to_owned(), Value::Object(Map::new()));
        }
    }
    Value::Object(root)
}

/// Decodes a set from FieldsV1.
pub(super) fn decode(written: &Value) -> FieldSet {
    let mut set = FieldSet::new();
    walk(written, &mut Vec::new(), &mut set);
    set
}

fn walk(node: &Value, path: &mut Path, set: &mut FieldSet) {
    let Some(children) = node.as_object() else { return };
    if children.is_empty() && !path.is_empty() {
        set.insert(path.clone());
    }
    for (step, child) in children {
        if step == "." {
            set.insert(path.clone());
            continue;
        }
        path.push(step.clone());
        walk(child, path, set);
        path.pop();
    }
}

/// Formats a path as conflicts name it: `.spec.containers[name="x"].image`.
pub(super) fn display(path: &Path) -> String {
    let mut shown = String::new();
    for step in path {
        match step.split_at(2) {
            ("f:", field) => shown.extend([".", field]),
            ("k:", keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<_> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                shown.push_str(&format!("[{}]", keys.join(",")));
            }
            (_, value) => shown.push_str(&format!("[={value}]")),
        }
    }
    shown
}

/// Returns the value at a path.
pub(super) fn get<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, step| match step.split_at(2) {
        ("f:", field) => value.get(field),
        _ => value.as_array()?.get(position(value, step)?),
    })
}

/// Removes the value at a path.
pub(super) fn remove(value: &mut Value, path: &[String]) {
    let Some((last, parents)) = path.split_last() else { return };
    let parent = parents.iter().try_fold(value, |value, step| match step.split_at(2) {
        ("f:", field) => value.get_mut(field),
        _ => {
            let at = position(value, step)?;
            value.as_array_mut()?.get_mut(at)
        }
    });
    let Some(parent) = parent else { return };
    match last.split_at(2) {
        ("f:", field) => {
            if let Some(fields) = parent.as_object_mut() {
                fields.remove(field);
            }
        }
        _ => {
            if let Some(at) = position(parent, last)
                && let Some(items) = parent.as_array_mut()
            {
                items.remove(at);
            }
        }
    }
}

/// Returns the position of a step's item in a list. A key missing in the item has its default, so it is not
/// compared.
fn position(list: &Value, step: &str) -> Option<usize> {
    let items = list.as_array()?;
    let wanted: Value = serde_json::from_str(step.get(2..)?).ok()?;
    items.iter().position(|item| match (step.starts_with("k:"), &wanted) {
        (true, Value::Object(keys)) => {
            keys.iter().all(|(name, value)| item.get(name).is_none_or(|own| own == value))
        }
        _ => *item == wanted,
    })
}
