//! The built-in kinds that are served, and reading them by their types.

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

/// How a kind is written (`pkg/registry/<group>/<kind>/strategy.go`, `storage.go`).
#[derive(Clone, Copy, Default)]
struct Ways {
    status: bool,
    generation: bool,
    /// Refuse a replace without resourceVersion.
    guarded: bool,
    upsert: bool,
}

/// Whether objects of a scope are in namespaces.
trait Scope {
    const NAMESPACED: bool;
}

impl Scope for NamespaceResourceScope {
    const NAMESPACED: bool = true;
}

impl Scope for ClusterResourceScope {
    const NAMESPACED: bool = false;
}

fn kind<K>(plural: &str, ways: Ways) -> Arc<Kind>
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
        status: ways.status,
        generation: ways.generation,
        unconditional: !ways.guarded,
        upsert: ways.upsert,
        form: Form::BuiltIn(typed::<K>),
    })
}

/// All of them.
pub(super) fn kinds() -> Vec<Arc<Kind>> {
    let plain = Ways::default();
    let status = Ways { status: true, ..plain };
    let counted = Ways { status: true, generation: true, ..plain };
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
        kind::<Lease>("leases", Ways { guarded: true, upsert: true, ..plain }),
        kind::<Event>("events", Ways { upsert: true, ..plain }),
        kind::<Role>("roles", Ways { upsert: true, ..plain }),
        kind::<RoleBinding>("rolebindings", Ways { upsert: true, ..plain }),
        kind::<ClusterRole>("clusterroles", Ways { upsert: true, ..plain }),
        kind::<ClusterRoleBinding>("clusterrolebindings", Ways { upsert: true, ..plain }),
        kind::<NetworkPolicy>("networkpolicies", Ways { generation: true, ..plain }),
        kind::<PodDisruptionBudget>("poddisruptionbudgets", counted),
        kind::<StorageClass>("storageclasses", plain),
        // Taken, and not held: their rules are tried where they are shipped from.
        kind::<ValidatingAdmissionPolicy>("validatingadmissionpolicies", counted),
        kind::<ValidatingAdmissionPolicyBinding>("validatingadmissionpolicybindings", plain),
        stable::<MutatingAdmissionPolicy>("mutatingadmissionpolicies"),
        stable::<MutatingAdmissionPolicyBinding>("mutatingadmissionpolicybindings"),
        kind::<VolumeAttachment>("volumeattachments", status),
        kind::<CustomResourceDefinition>("customresourcedefinitions", Ways { guarded: true, ..counted }),
    ]
}

/// A kind that is v1 since Kubernetes 1.36, with the fields that it has as v1alpha1 in the level that is compiled in.
fn stable<K>(plural: &str) -> Arc<Kind>
where
    K: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned,
    K::Scope: Scope,
{
    let of_level = kind::<K>(plural, Ways { generation: true, ..Ways::default() });
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

/// The metadata of a custom resource, by its type.
pub(super) fn typed_metadata(metadata: &Value) -> Result<Value, String> {
    typed::<ObjectMeta>(metadata)
}

/// Takes what the type does not know out of `given` and answers the paths. `known` is what the type wrote again; it fills
/// in fields that were not given, which would look as if they had been. An empty value may be known and not written, so it
/// is not told.
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
