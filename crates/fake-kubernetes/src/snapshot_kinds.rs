//! Kinds of VolumeSnapshots: fields and rules of external-snapshotter 8.6
//! (client/config/crd/snapshot.storage.k8s.io_*.yaml, version v1), without their descriptions.

use serde_json::{Value, json};

/// Returns the three definitions.
pub(super) fn definitions() -> [Value; 3] {
    [
        definition("VolumeSnapshot", "volumesnapshots", "Namespaced", snapshot(), true),
        definition("VolumeSnapshotContent", "volumesnapshotcontents", "Cluster", content(), true),
        definition("VolumeSnapshotClass", "volumesnapshotclasses", "Cluster", class(), false),
    ]
}

fn definition(kind: &str, plural: &str, scope: &str, schema: Value, status: bool) -> Value {
    let subresources = if status { json!({"status": {}}) } else { json!({}) };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.snapshot.storage.k8s.io")},
        "spec": {
            "group": "snapshot.storage.k8s.io", "scope": scope,
            "names": {
                "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase(),
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": subresources,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

fn immutable(field: &str) -> Value {
    json!({
        "type": "string",
        "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": format!("{field} is immutable")}],
    })
}

fn kept(field: &str) -> Value {
    json!({
        "rule": format!("!has(oldSelf.{field}) || has(self.{field})"),
        "message": format!("{field} is required once set"),
    })
}

fn one_of(a: &str, b: &str) -> Value {
    json!({
        "rule": format!("(has(self.{a}) && !has(self.{b})) || (!has(self.{a}) && has(self.{b}))"),
        "message": format!("exactly one of {a} and {b} must be set"),
    })
}

fn error() -> Value {
    json!({"type": "object", "properties": {
        "message": {"type": "string"}, "time": {"type": "string", "format": "date-time"},
    }})
}

fn snapshot() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": {"type": "object", "required": ["source"], "properties": {
            "source": {
                "type": "object",
                "properties": {
                    "persistentVolumeClaimName": immutable("persistentVolumeClaimName"),
                    "volumeSnapshotContentName": immutable("volumeSnapshotContentName"),
                },
                "x-kubernetes-validations": [
                    kept("persistentVolumeClaimName"), kept("volumeSnapshotContentName"),
                    one_of("volumeSnapshotContentName", "persistentVolumeClaimName"),
                ],
            },
            "volumeSnapshotClassName": {"type": "string", "x-kubernetes-validations": [{
                "rule": "size(self) > 0", "message": "volumeSnapshotClassName must not be the empty string when set",
            }]},
        }},
        "status": {"type": "object", "properties": {
            "boundVolumeSnapshotContentName": {"type": "string"},
            "creationTime": {"type": "string", "format": "date-time"},
            "error": error(),
            "readyToUse": {"type": "boolean"},
            "restoreSize": {
                "type": "string", "x-kubernetes-int-or-string": true,
                "pattern": "^(\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\\+|-)?(([0-9]+(\\.[0-9]*)?)|(\\.[0-9]+))))?$",
            },
            "volumeGroupSnapshotName": {"type": "string"},
        }},
    }})
}

fn content() -> Value {
    json!({"type": "object", "required": ["spec"], "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "spec": {
            "type": "object", "required": ["deletionPolicy", "driver", "source", "volumeSnapshotRef"],
            "x-kubernetes-validations": [kept("sourceVolumeMode")],
            "properties": {
                "deletionPolicy": {"type": "string", "enum": ["Delete", "Retain"]},
                "driver": {"type": "string"},
                "source": {
                    "type": "object",
                    "properties": {
                        "snapshotHandle": immutable("snapshotHandle"), "volumeHandle": immutable("volumeHandle"),
                    },
                    "x-kubernetes-validations": [
                        kept("volumeHandle"), kept("snapshotHandle"), one_of("volumeHandle", "snapshotHandle"),
                    ],
                },
                "sourceVolumeMode": immutable("sourceVolumeMode"),
                "volumeSnapshotClassName": {"type": "string"},
                "volumeSnapshotRef": {
                    "type": "object", "x-kubernetes-map-type": "atomic",
                    "properties": {
                        "apiVersion": {"type": "string"}, "fieldPath": {"type": "string"}, "kind": {"type": "string"},
                        "name": {"type": "string"}, "namespace": {"type": "string"},
                        "resourceVersion": {"type": "string"}, "uid": {"type": "string"},
                    },
                    "x-kubernetes-validations": [{
                        "rule": "has(self.name) && has(self.__namespace__)",
                        "message": "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set",
                    }],
                },
            },
        },
        "status": {"type": "object", "properties": {
            "creationTime": {"type": "integer", "format": "int64"},
            "error": error(),
            "readyToUse": {"type": "boolean"},
            "restoreSize": {"type": "integer", "format": "int64", "minimum": 0},
            "snapshotHandle": {"type": "string"},
            "volumeGroupSnapshotHandle": {"type": "string"},
        }},
    }})
}

fn class() -> Value {
    json!({"type": "object", "required": ["deletionPolicy", "driver"], "properties": {
        "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
        "deletionPolicy": {"type": "string", "enum": ["Delete", "Retain"]},
        "driver": {"type": "string"},
        "parameters": {"type": "object", "additionalProperties": {"type": "string"}},
    }})
}
