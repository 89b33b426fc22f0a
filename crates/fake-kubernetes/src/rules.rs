//! Rules for objects beyond their types: defaults, validation, admission.

mod admission;
mod claim;
mod event;
mod job;
mod mutation;
mod names;
mod network_policy;
mod pod;
mod secret;
mod security;

use serde_json::{Value, json};

use super::cause::Cause;
use super::definition;
use super::kind::{Form, Kind};
use super::object::{list, metadata, now, text};
use super::status::Refusal;
use super::store::State;

pub(super) use admission::usage;
pub(super) use claim::bytes;
pub(super) use mutation::mutate;

/// Fills in defaults (pkg/apis/*/defaults.go) and the fields that a kind's strategy sets.
pub(super) fn default(state: &State, kind: &Kind, object: &mut Value) {
    if let Form::Custom(custom) = &kind.form {
        custom.default(object);
        return;
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "namespaces") => namespace(object),
        ("", "secrets") => secret::default(object),
        ("", "pods") => pod::default(object),
        ("", "persistentvolumeclaims") => claim::default(state, object),
        ("", "persistentvolumes") => {
            set(object, "/spec", "volumeMode", json!("Filesystem"));
            set(object, "/spec", "persistentVolumeReclaimPolicy", json!("Retain"));
            unset_status(object, json!({"phase": "Pending"}));
        }
        ("batch", "jobs") => job::default(object),
        ("apiextensions.k8s.io", "customresourcedefinitions") => established(object),
        ("storage.k8s.io", "storageclasses") => {
            set(object, "", "reclaimPolicy", json!("Delete"));
            set(object, "", "volumeBindingMode", json!("Immediate"));
        }
        _ => {}
    }
}

/// Returns the validation errors of an object, or of a change to one.
pub(super) fn validate(state: &State, kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = names::validate(kind, object, old);
    if let Form::Custom(custom) = &kind.form {
        causes.extend(custom.validate(object, old));
        return causes;
    }
    match (kind.group.as_str(), kind.plural.as_str()) {
        ("", "secrets") => secret::validate(object, old, &mut causes),
        ("", "pods") => pod::validate(object, old, &mut causes),
        ("", "configmaps") => secret::validate_map(object, old, &mut causes),
        ("events.k8s.io", "events") => event::validate(object, &mut causes),
        ("coordination.k8s.io", "leases") => event::validate_lease(object, &mut causes),
        ("", "persistentvolumeclaims") => claim::validate(state, object, old, &mut causes),
        ("networking.k8s.io", "networkpolicies") => network_policy::validate(object, &mut causes),
        ("batch", "jobs") => job::validate(object, old, &mut causes),
        ("apiextensions.k8s.io", "customresourcedefinitions") => {
            causes.extend(definition::kinds(object).err().into_iter().flatten());
        }
        _ => {}
    }
    causes
}

/// Refuses objects that violate a policy.
pub(super) fn admit(state: &State, kind: &Kind, namespace: &str, object: &Value) -> Result<(), Refusal> {
    if kind.is("", "pods") {
        admission::account(state, kind, namespace, object)?;
        security::admit(state, kind, namespace, object)?;
    }
    admission::quota(state, kind, namespace, object)
}

fn namespace(object: &mut Value) {
    let name = text(object, "/metadata/name").to_owned();
    metadata(object).entry("labels").or_insert_with(|| json!({}))["kubernetes.io/metadata.name"] =
        name.into();
    set(object, "", "spec", json!({}));
    set(object, "/spec", "finalizers", json!(["kubernetes"]));
    unset_status(object, json!({"phase": "Active"}));
}

/// Sets the status of a definition that is served at once (apiextensions-apiserver
/// pkg/controller/{status,establish}; a moment later in a cluster).
fn established(object: &mut Value) {
    set(object, "/spec", "conversion", json!({"strategy": "None"}));
    let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "lastTransitionTime": now()});
    let stored = list(object, "/spec/versions").iter().find(|version| version["storage"] == true);
    let stored = json!([stored.map(|version| text(version, "/name"))]);
    unset_status(
        object,
        json!({
            "acceptedNames": object["spec"]["names"], "storedVersions": stored,
            "conditions": [condition("NamesAccepted", "NoConflicts"), condition("Established", "InitialNamesAccepted")],
        }),
    );
}

/// Sets a field that is not set, if its parent object exists.
fn set(object: &mut Value, pointer: &str, field: &str, value: Value) {
    if let Some(fields) = object.pointer_mut(pointer).and_then(Value::as_object_mut)
        && fields.get(field).is_none_or(Value::is_null)
    {
        fields.insert(field.to_owned(), value);
    }
}

/// Sets the status of an object that has none yet.
fn unset_status(object: &mut Value, status: Value) {
    if object.get("status").is_none_or(Value::is_null) {
        object["status"] = status;
    }
}
