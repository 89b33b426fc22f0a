//! Built-in kinds of the server, and decoding with their types.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::api::admissionregistration::v1alpha1::{
    MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ResourceQuota,
    Secret, Service, ServiceAccount,
};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::{ClusterResourceScope, Metadata, NamespaceResourceScope, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::{Form, Kind};

/// Properties of writes to a kind (`pkg/registry/<group>/<kind>/strategy.go`, `storage.go`).
#[derive(Clone, Copy, Default)]
struct WriteBehavior {
    status: bool,
    generation: bool,
    /// Refuses a replace without resourceVersion.
    guarded: bool,
    upsert: bool,
}

/// Scope of a kind: namespaced or cluster-wide.
trait Scope {
    const NAMESPACED: bool;
}

impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

fn kind<K>(plural: &str, behavior: WriteBehavior) -> Arc<Kind>
where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned,
    K::Scope: Scope,
{
    Arc::new(Kind {
        group: K::GROUP.to_owned(),
        version: K::VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        plural: plural.to_owned(),
        namespaced: K::Scope::NAMESPACED,
        status: behavior.status,
        generation: behavior.generation,
        unconditional: !behavior.guarded,
        upsert: behavior.upsert,
        form: Form::BuiltIn(typed::<K>),
    })
}

/// Returns all built-in kinds.
pub(super) fn kinds() -> Vec<Arc<Kind>> {
    let plain = WriteBehavior::default();
    let status = WriteBehavior { status: true, ..plain };
    let counted = WriteBehavior { status: true, generation: true, ..plain };
    vec![
        kind::<Namespace>("namespaces", status),
        kind::<Secret>("secrets", plain),
        kind::<ConfigMap>("configmaps", plain),
        kind::<ServiceAccount>("serviceaccounts", plain),
        kind::<Service>("services", status),
        kind::<LimitRange>("limitranges", plain),
        kind::<ResourceQuota>("resourcequotas", status),
        kind::<Node>("nodes", status),
        kind::<Pod>("pods", status),
        kind::<PersistentVolumeClaim>("persistentvolumeclaims", status),
        kind::<PersistentVolume>("persistentvolumes", status),
        kind::<Job>("jobs", counted),
        kind::<Deployment>("deployments", counted),
        kind::<DaemonSet>("daemonsets", counted),
        kind::<Lease>("leases", WriteBehavior { guarded: true, upsert: true, ..plain }),
        kind::<Event>("events", WriteBehavior { upsert: true, ..plain }),
        kind::<Role>("roles", WriteBehavior { upsert: true, ..plain }),
        kind::<RoleBinding>("rolebindings", WriteBehavior { upsert: true, ..plain }),
        kind::<ClusterRole>("clusterroles", WriteBehavior { upsert: true, ..plain }),
        kind::<ClusterRoleBinding>("clusterrolebindings", WriteBehavior { upsert: true, ..plain }),
        kind::<NetworkPolicy>("networkpolicies", WriteBehavior { generation: true, ..plain }),
        kind::<PodDisruptionBudget>("poddisruptionbudgets", counted),
        kind::<StorageClass>("storageclasses", plain),
        // Accepted but not enforced: their rules are tested where they are shipped.
        kind::<ValidatingAdmissionPolicy>("validatingadmissionpolicies", counted),
        kind::<ValidatingAdmissionPolicyBinding>("validatingadmissionpolicybindings", plain),
        stable::<MutatingAdmissionPolicy>("mutatingadmissionpolicies"),
        stable::<MutatingAdmissionPolicyBinding>("mutatingadmissionpolicybindings"),
        kind::<VolumeAttachment>("volumeattachments", status),
        kind::<CustomResourceDefinition>(
            "customresourcedefinitions",
            WriteBehavior { guarded: true, ..counted },
        ),
    ]
}

/// Creates a kind that is v1 since Kubernetes 1.36, with its v1alpha1 fields in the API level that is
/// compiled in.
fn stable<K>(plural: &str) -> Arc<Kind>
where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned,
    K::Scope: Scope,
{
    let of_level = kind::<K>(plural, WriteBehavior { generation: true, ..WriteBehavior::default() });
    let form = Form::BuiltIn(|object| {
        let api_version = object["apiVersion"].clone();
        let mut object = object.clone();
        object["apiVersion"] = K::API_VERSION.into();
        let mut known = typed::<K>(&object)?;
        known["apiVersion"] = api_version;
        Ok(known)
    });
    Arc::new(Kind {
        group: of_level.group.clone(),
        version: "v1".to_owned(),
        kind: of_level.kind.clone(),
        plural: of_level.plural.clone(),
        namespaced: of_level.namespaced,
        status: of_level.status,
        generation: of_level.generation,
        unconditional: of_level.unconditional,
        upsert: of_level.upsert,
        form,
    })
}

fn typed<K: Serialize + DeserializeOwned>(object: &Value) -> Result<Value, String> {
    let typed: K = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
    serde_json::to_value(typed).map_err(|e| e.to_string())
}

/// Decodes the metadata of a custom resource with its type.
pub(super) fn typed_metadata(metadata: &Value) -> Result<Value, String> {
    typed::<ObjectMeta>(metadata)
}

/// Removes unknown fields from `given` and returns their paths. `known` is `given` after decoding and
/// encoding with its type, which adds default fields. An empty value can be known without being encoded, so
/// it is not reported.
pub(super) fn prune(given: &mut Value, known: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    compare(given, known, "", &mut paths);
    paths
}

fn compare(given: &mut Value, known: &Value, path: &str, paths: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.retain(|name, value| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(other) => compare(value, other, &path, paths),
                None if empty(value) => {}
                None => {
                    paths.push(path);
                    return false;
                }
            }
            true
        }),
        (Value::Array(given), Value::Array(known)) => {
            for (at, (value, other)) in given.iter_mut().zip(known).enumerate() {
                compare(value, other, &format!("{path}[{at}]"), paths);
            }
        }
        _ => {}
    }
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
