//! The objects of one volume on one node: its claim, and its holder pod.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::desired::DesiredVolume;
use super::labels::{GENERATION, HOLDS, ID, IMAGE_CACHE, NODE, TENANT, is_of, node_label};
use crate::config::node::Node;
use crate::kubernetes::names::{MANAGER, object};
use larder_model::digest::Digest;
use larder_model::image_cache::CacheId;

/// User and group of a holder, which needs no privileges.
const UNPRIVILEGED_ID: i64 = 65532;

/// Returns the cache and the volume number of a claim.
pub(super) fn volume_of(claim: &PersistentVolumeClaim) -> Option<(CacheId, u32)> {
    let labels = claim.labels();
    Some((labels.get(ID)?.parse().ok()?, labels.get(GENERATION)?.parse().ok()?))
}

/// Returns the namespace of the image cache of a claim.
pub(super) fn tenant_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.labels().get(TENANT).map(String::as_str)
}

/// Returns the name of the claim that a holder mounts.
pub(super) fn holds(pod: &Pod) -> Option<&str> {
    pod.labels().get(HOLDS).map(String::as_str)
}

/// Builds the objects of one node.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    pub(super) settings: &'a Node,
    /// Name of the node, and UID of its object.
    pub(super) node: (&'a str, &'a str),
}

impl Objects<'_> {
    fn metadata(&self, desired: &DesiredVolume, name: &str) -> Value {
        let volume = &desired.volume;
        let pairs = [
            ("app.kubernetes.io/name", "larder-holder".to_owned()),
            ("app.kubernetes.io/managed-by", MANAGER.to_owned()),
            (ID, volume.id.to_string()),
            (GENERATION, volume.generation.to_string()),
            (TENANT, volume.tenant.to_string()),
            (NODE, node_label(self.node.0)),
            (HOLDS, desired.claim.clone()),
        ];
        json!({
            "name": name,
            "namespace": self.settings.namespace,
            "labels": pairs.into_iter().collect::<BTreeMap<_, _>>(),
            "annotations": {
                IMAGE_CACHE: desired.cache(),
                NODE: self.node.0,
                // When a node is removed, both are deleted; neither must prevent that.
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
            },
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "Node",
                "name": self.node.0,
                "uid": self.node.1,
                "controller": true,
            }],
        })
    }

    /// Returns the claim, which is restored from the snapshot.
    pub(super) fn claim(&self, desired: &DesiredVolume) -> Value {
        let mut claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": self.metadata(desired, &desired.claim),
            "spec": {
                "accessModes": [self.settings.access_mode],
                "volumeMode": "Filesystem",
                "dataSource": {
                    "apiGroup": "snapshot.storage.k8s.io",
                    "kind": "VolumeSnapshot",
                    "name": object(&desired.volume),
                },
                "resources": {"requests": {"storage": desired.size.to_string()}},
            },
        });
        // Without the key, the default class is used; an empty value would mean no class.
        if !self.settings.storage_class.is_empty() {
            claim["spec"]["storageClassName"] = json!(self.settings.storage_class);
        }
        claim
    }

    /// Returns the holder of the claim. `before` are holders that are being deleted. The name is derived from
    /// them, so that a repeated create makes only one successor, and the successor does not wait for their
    /// end. As long as a pod with the claim exists on a node, the cluster does not detach the disk.
    pub(super) fn holder(&self, desired: &DesiredVolume, before: &[&Pod]) -> Value {
        let mut uids: Vec<String> = before.iter().filter_map(|pod| pod.uid()).collect();
        uids.sort();
        let name = format!("{}-{}", desired.claim, &Digest::sha256(uids.join(",").as_bytes()).hex()[..4]);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.metadata(desired, &name),
            "spec": {
                "restartPolicy": "Always",
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                // A holder keeps running for 10 s, until its successor also has the claim (`larder node
                // hold`).
                "terminationGracePeriodSeconds": 30,
                // Not spec.nodeName: only the scheduler binds a claim that waits for its first consumer.
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchFields": [
                        {"key": "metadata.name", "operator": "In", "values": [self.node.0]},
                    ]}],
                }}},
                // As for a DaemonSet: a drain or a full disk must not remove the disk of running containers.
                "tolerations": [{"operator": "Exists"}],
                // No fsGroup: it would change files that the seal covers.
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": UNPRIVILEGED_ID,
                    "runAsGroup": UNPRIVILEGED_ID,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "holder",
                    "image": self.settings.image,
                    "imagePullPolicy": "IfNotPresent",
                    "args": ["node", "hold"],
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "readOnlyRootFilesystem": true,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": {
                        "requests": {"cpu": "1m", "memory": "16Mi", "ephemeral-storage": "1Mi"},
                        "limits": {"memory": "32Mi", "ephemeral-storage": "1Mi"},
                    },
                    "volumeMounts": [{"name": "cache", "mountPath": "/cache", "readOnly": true}],
                }],
                "volumes": [{
                    "name": "cache",
                    "persistentVolumeClaim": {"claimName": desired.claim, "readOnly": true},
                }],
            },
        })
    }
}

/// Reports whether a claim matches [`Objects::claim`]. An API server can silently drop the source
/// (facts/kubernetes.md, 1), which would give an empty volume. A claim of another node is a collision of
/// names.
pub(super) fn fits(claim: &PersistentVolumeClaim, desired: &DesiredVolume, node: &str) -> bool {
    let source = claim.spec.as_ref().and_then(|spec| spec.data_source.as_ref());
    let restored = source
        .is_some_and(|source| source.kind == "VolumeSnapshot" && source.name == object(&desired.volume));
    restored && is_of(&claim.metadata, node)
}

#[cfg(test)]
pub(super) mod tests {
    use kube_cel::{VapEvaluator, VapExpression};
    use serde_json::{Value, json};

    use super::super::desired::tests::{cache, named};
    use super::*;

    /// Rewrites an expression for the evaluator. It does not provide `extra` for its own requests, so the
    /// request is given as parameters. It also treats every map as an object, whose fields have escaped names
    /// (apiserver pkg/cel/escaping.go).
    pub(in super::super) fn of_evaluator(expression: &str) -> String {
        let mut expression = expression.replace("request.", "params.");
        for key in ["authentication.kubernetes.io/node-name", "larder.dev/node", "cache.larder.dev/"] {
            let escaped = key.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__");
            expression = expression.replace(key, &escaped);
        }
        expression
    }

    /// Returns the rules of the shipped policies that refuse a request, with the request as API servers show
    /// it. If any rule refuses it, the request is denied.
    fn refusals(operation: &str, resource: &str, token_of: Option<&str>, object: &Value) -> Vec<String> {
        let shipped = include_str!("../../../config/kubernetes/node/policy.yaml");
        let objects: Vec<Value> =
            shipped.split("\n---\n").map(|object| serde_saphyr::from_str(object).unwrap()).collect();
        let is_for = |policy: &&Value| {
            let lists = |key: &str, what: &str| {
                let rule = &policy["spec"]["matchConstraints"]["resourceRules"][0];
                rule[key].as_array().unwrap().iter().any(|one| one == what)
            };
            policy["kind"] == "ValidatingAdmissionPolicy"
                && lists("operations", operation)
                && lists("resources", resource)
        };
        let extra =
            token_of.map_or(json!({}), |node| json!({"authentication.kubernetes.io/node-name": [node]}));
        let request = json!({
            "operation": operation, "resource": {"resource": resource},
            "userInfo": {"username": "system:serviceaccount:larder-nodes:larder-node", "extra": extra},
        });
        let evaluator = VapEvaluator::builder().params(request);
        let evaluator = match operation {
            "DELETE" => evaluator.old_object(object.clone()),
            // A claim of another node, which the agent would take over.
            "UPDATE" => {
                let mut old = object.clone();
                old["metadata"]["annotations"][NODE] = json!("node-b");
                evaluator.object(object.clone()).old_object(old)
            }
            _ => evaluator.object(object.clone()),
        };
        let rules: Vec<VapExpression> = objects
            .iter()
            .filter(is_for)
            .flat_map(|policy| policy["spec"]["validations"].as_array().unwrap())
            .map(|rule| VapExpression {
                expression: of_evaluator(rule["expression"].as_str().unwrap()),
                message: None,
                message_expression: None,
            })
            .collect();
        let both = resource == "pods" && matches!(operation, "CREATE" | "UPDATE");
        assert_eq!(rules.len(), if both { 2 } else { 1 });
        let results = evaluator.build().evaluate(&rules).into_iter().filter(|result| !result.passed);
        results.map(|result| format!("{}: {:?}", result.expression, result.message)).collect()
    }

    #[test]
    fn the_policy_limits_an_agent_to_its_own_node() {
        let caches = [cache("team-a", "web", &[], |_| {})];
        let desired =
            super::super::desired::decide(&named("team-a/web"), &caches, "node-a", 1).volumes.remove(0);
        let settings = Node::default();
        let objects = Objects { settings: &settings, node: ("node-a", "uid") };
        let (claim, holder) = (objects.claim(&desired), objects.holder(&desired, &[]));
        for (resource, object) in [("persistentvolumeclaims", &claim), ("pods", &holder)] {
            for operation in ["CREATE", "DELETE"] {
                let admitted = |of: Option<&str>| refusals(operation, resource, of, object);
                assert_eq!(admitted(Some("node-a")), Vec::<String>::new(), "{operation} {resource}");
                assert!(!admitted(Some("node-b")).is_empty(), "{operation} {resource}");
                assert!(!admitted(None).is_empty(), "{operation} {resource}");
            }
            assert!(!refusals("UPDATE", resource, Some("node-a"), object).is_empty(), "{resource}");
            let mut bare = object.clone();
            bare["metadata"].as_object_mut().unwrap().remove("annotations");
            assert!(!refusals("CREATE", resource, Some("node-a"), &bare).is_empty());
        }
        type Change = fn(&mut Value);
        let elsewhere: [Change; 4] = [
            |spec| spec["nodeName"] = json!("node-b"),
            |spec| drop(spec.as_object_mut().unwrap().remove("affinity")),
            |spec| {
                let required =
                    &mut spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
                required["nodeSelectorTerms"][0]["matchFields"][0]["values"] = json!(["node-a", "node-b"]);
            },
            |spec| {
                let required =
                    &mut spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
                let more = json!({"matchExpressions": [{"key": "x", "operator": "Exists"}]});
                required["nodeSelectorTerms"].as_array_mut().unwrap().push(more);
            },
        ];
        for change in elsewhere {
            let mut pod = holder.clone();
            change(&mut pod["spec"]);
            assert!(!refusals("CREATE", "pods", Some("node-a"), &pod).is_empty(), "{}", pod["spec"]);
        }
    }
}
