//! Merge rules of server-side apply for lists and maps of a kind: atomic, as sets, or item by item.
//!
//! Sources: `+listType`, `+listMapKey` and `+mapType` in staging/src/k8s.io/api/core/v1/types.go,
//! batch/v1/types.go and apimachinery pkg/apis/meta/v1/types.go; `x-kubernetes-list-type` of a custom
//! resource. A list without a declaration is atomic.

use serde_json::{Map, Value};

use super::kind::{Form, Kind};

/// A position in the structure of a kind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    /// A built-in type, identified by the name of the field.
    BuiltIn(&'a str),
    /// The root of a custom resource, whose metadata is built in.
    Root(&'a Value),
    /// A position in the schema of a custom resource.
    Schema(&'a Value),
    /// A position without a description.
    Free,
}

/// Merge rule of a list.
#[derive(Debug)]
pub(super) enum ListKind {
    Atomic,
    Set,
    Map(Vec<String>),
}

impl<'a> Shape<'a> {
    pub(super) fn of(kind: &'a Kind) -> Self {
        match &kind.form {
            Form::BuiltIn(_) => Shape::BuiltIn(""),
            Form::Custom(custom) => Shape::Root(custom.schema()),
        }
    }

    pub(super) fn field<'b>(self, name: &'b str) -> Shape<'b>
    where
        'a: 'b,
    {
        match self {
            Shape::BuiltIn(_) => Shape::BuiltIn(name),
            Shape::Root(_) if name == "metadata" => Shape::BuiltIn(name),
            Shape::Root(schema) | Shape::Schema(schema) => {
                let property = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
                property.filter(|schema| schema.is_object()).map_or(Shape::Free, Shape::Schema)
            }
            Shape::Free => Shape::Free,
        }
    }

    pub(super) fn item(self) -> Self {
        match self {
            Shape::Schema(schema) => schema.get("items").map_or(Shape::Free, Shape::Schema),
            // The fields below are identified by their own names.
            Shape::BuiltIn(_) => Shape::BuiltIn(""),
            _ => Shape::Free,
        }
    }

    pub(super) fn list(self) -> ListKind {
        match self {
            Shape::BuiltIn(field) => built_in(field),
            Shape::Schema(schema) => match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => {
                    let keys = schema["x-kubernetes-list-map-keys"].as_array();
                    ListKind::Map(
                        keys.into_iter().flatten().filter_map(|k| k.as_str().map(str::to_owned)).collect(),
                    )
                }
                _ => ListKind::Atomic,
            },
            _ => ListKind::Atomic,
        }
    }

    /// Reports whether a map is atomic.
    pub(super) fn atomic(self) -> bool {
        match self {
            Shape::BuiltIn(field) => matches!(
                field,
                "nodeSelector"
                    | "selector"
                    | "labelSelector"
                    | "dataSource"
                    | "claimRef"
                    | "secretKeyRef"
                    | "configMapKeyRef"
                    | "fieldRef"
                    | "resourceFieldRef"
                    | "regarding"
                    | "related"
                    | "roleRef"
            ),
            Shape::Schema(schema) => schema["x-kubernetes-map-type"] == "atomic",
            _ => false,
        }
    }

    /// Returns the path step of an item by its keys, with defaults filled in.
    pub(super) fn key(self, keys: &[String], item: &Value) -> String {
        let mut values = Map::new();
        for key in keys {
            let value = item.get(key).cloned().or_else(|| match self.item() {
                Shape::Schema(schema) => schema["properties"][key].get("default").cloned(),
                Shape::BuiltIn(_) if key == "protocol" => Some("TCP".into()),
                _ => None,
            });
            if let Some(value) = value {
                values.insert(key.clone(), value);
            }
        }
        format!("k:{}", Value::Object(values))
    }
}

fn built_in(field: &str) -> ListKind {
    let keys: &[&str] = match field {
        "finalizers" => return ListKind::Set,
        "ownerReferences" => &["uid"],
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "schedulingGates"
        | "resourceClaims"
        | "claims"
        | "secrets" => &["name"],
        "volumeMounts" => &["mountPath"],
        "volumeDevices" => &["devicePath"],
        "ports" => &["containerPort", "protocol"],
        "conditions" => &["type"],
        "hostAliases" | "podIPs" | "hostIPs" => &["ip"],
        "topologySpreadConstraints" => &["topologyKey", "whenUnsatisfiable"],
        _ => return ListKind::Atomic,
    };
    ListKind::Map(keys.iter().map(|key| (*key).to_owned()).collect())
}
