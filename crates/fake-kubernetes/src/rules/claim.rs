//! PersistentVolumeClaims (pkg/apis/core/v1/defaults.go, pkg/api/persistentvolumeclaim/util.go,
//! core/validation/validation.go; facts/kubernetes.md, 1).

use serde_json::{Value, json};

use super::super::cause::Cause;
use super::super::object::{deleting, list, meta, set_finalizer};
use super::super::store::State;
use super::{set, text, unset_status};

const PROTECTION: &str = "kubernetes.io/pvc-protection";

pub(super) fn default(state: &State, object: &mut Value) {
    set(object, "", "spec", json!({}));
    set(object, "/spec", "volumeMode", json!("Filesystem"));
    let fresh = object.get("status").is_none_or(Value::is_null);
    unset_status(object, json!({"phase": "Pending"}));
    if !fresh || deleting(object) {
        return;
    }
    // Admission plug-ins DefaultStorageClass and StorageObjectInUseProtection.
    if object["spec"].get("storageClassName").is_none() {
        let all = state.all("storage.k8s.io", "storageclasses", "");
        let default = "storageclass.kubernetes.io/is-default-class";
        let class = all
            .filter(|class| class["metadata"]["annotations"][default] == "true")
            .max_by_key(|class| meta(class, "creationTimestamp").to_owned());
        if let Some(class) = class {
            object["spec"]["storageClassName"] = meta(class, "name").into();
        }
    }
    set_finalizer(object, PROTECTION, true);
    let Some(spec) = object["spec"].as_object_mut() else { return };
    // A source in another namespace needs the feature gate CrossNamespaceVolumeDataSource, which is off. It
    // is dropped silently, and the volume is empty.
    if spec
        .get("dataSourceRef")
        .is_some_and(|source| source["namespace"].as_str().is_some_and(|n| !n.is_empty()))
    {
        spec.remove("dataSourceRef");
    }
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => spec.insert("dataSourceRef".to_owned(), source),
        (None, Some(source)) => spec.insert("dataSource".to_owned(), source),
        _ => None,
    };
}

pub(super) fn validate(_: &State, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let modes: Vec<_> = list(object, "/spec/accessModes").iter().filter_map(Value::as_str).collect();
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    if modes.is_empty() {
        causes.push(Cause::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for (at, mode) in modes.iter().enumerate() {
        if !MODES.contains(mode) {
            causes.push(Cause::unsupported(&format!("spec.accessModes[{at}]"), &(*mode).into(), &MODES));
        }
    }
    if modes.contains(&"ReadWriteOncePod") && modes.len() > 1 {
        causes.push(Cause::forbidden(
            "spec.accessModes",
            "may not use ReadWriteOncePod with other access modes",
        ));
    }
    match text(object, "/spec/resources/requests/storage") {
        "" => causes.push(Cause::required("spec.resources[storage]", "")),
        size if bytes(size).is_none_or(|bytes| bytes == 0) => {
            causes.push(Cause::invalid("spec.resources[storage]", &size.into(), "must be greater than zero"));
        }
        _ => {}
    }
    let Some(old) = old else { return };
    let (mut before, mut after) = (old["spec"].clone(), object["spec"].clone());
    for spec in [&mut before, &mut after] {
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("resources");
            fields.remove("volumeAttributesClassName");
        }
    }
    // Binding sets the volume name, once.
    if before.get("volumeName").is_none_or(|name| name == "") {
        for spec in [&mut before, &mut after] {
            spec.as_object_mut().map(|fields| fields.remove("volumeName"));
        }
    }
    if before != after {
        causes.push(Cause::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
    }
    let size = |object: &Value| bytes(text(object, "/spec/resources/requests/storage")).unwrap_or_default();
    if size(object) < size(old) {
        let why = "field can not be less than status.capacity";
        causes.push(Cause::forbidden("spec.resources.requests.storage", why));
    } else if size(object) > size(old) && text(old, "/status/phase") != "Bound" {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", why));
    }
}

/// Parses a quantity in whole bytes (apimachinery pkg/api/resource/quantity.go), without exponents.
pub(in super::super) fn bytes(quantity: &str) -> Option<u64> {
    let digits = quantity.find(|sign: char| !sign.is_ascii_digit()).unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(digits);
    let shift = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1000u64.pow(2),
        "G" => 1000u64.pow(3),
        "T" => 1000u64.pow(4),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1u64 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(shift)
}
