//! The objects of one volume on one node: its claim, and the pod that holds it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::wish::Wish;
use crate::caches::volumes::VolumeId;
use crate::config::node::Node;
use crate::kubernetes::names::{MANAGER, object};
use larder_model::digest::Digest;
use larder_model::image_cache::CacheId;

/// On claims and holders: which node, as [`node_label`].
const NODE: &str = "larder.dev/node";
/// On holders: the name of the claim.
const HOLDS: &str = "larder.dev/holds";
const TENANT: &str = "larder.dev/tenant";
const ID: &str = "larder.dev/id";
const GENERATION: &str = "larder.dev/generation";
/// On pods and namespaces: the image cache that is asked for. On claims and holders: the one that they are for.
pub(super) const IMAGE_CACHE: &str = "larder.dev/image-cache";
/// On pods, `true`. The annotation: the pod must not start before its image cache is attached. The label: the pod is held back, set by
/// `config/kubernetes/node/required`.
pub(super) const REQUIRED: &str = "larder.dev/image-cache-required";
/// Label of a pod that is held back: the node that attaches its image cache, as [`node_label`].
pub(super) const ATTACH_ON: &str = "larder.dev/attach-on";
/// Scheduling gate of a pod that is held back (KEP-3521).
pub(super) const GATE: &str = "larder.dev/image-cache";
/// The user of a holder: it needs to be nobody.
const NOBODY: i64 = 65532;
/// Characters of a node's name in the names of objects.
const HASH: usize = 10;

/// The node as a label and as a part of names: names of nodes may be longer than either.
pub(super) fn node_label(node: &str) -> String {
    Digest::sha256(node.as_bytes()).hex()[..HASH].to_owned()
}

/// Selects what an agent has made for its node.
pub(super) fn selector(node: &str) -> String {
    format!("app.kubernetes.io/managed-by={MANAGER},{NODE}={}", node_label(node))
}

/// Whether an object was made for this node: two names may have one label.
pub(super) fn is_of(meta: &ObjectMeta, node: &str) -> bool {
    meta.annotations.as_ref().and_then(|annotations| annotations.get(NODE)).is_some_and(|of| of == node)
}

/// Name of the claim for a volume on a node. Fits a label.
pub(super) fn claim_name(volume: &VolumeId, node: &str) -> String {
    format!("{}-{}", object(volume), node_label(node))
}

/// The cache and the number of the volume that a claim is of.
pub(super) fn volume_of(claim: &PersistentVolumeClaim) -> Option<(CacheId, u32)> {
    let labels = claim.labels();
    Some((labels.get(ID)?.parse().ok()?, labels.get(GENERATION)?.parse().ok()?))
}

/// The namespace of the image cache that a claim is of.
pub(super) fn tenant_of(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.labels().get(TENANT).map(String::as_str)
}

/// The claim that a pod holds.
pub(super) fn holds(pod: &Pod) -> Option<&str> {
    pod.labels().get(HOLDS).map(String::as_str)
}

/// What is made on one node.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    pub(super) settings: &'a Node,
    /// Name of the node, and UID of its object.
    pub(super) node: (&'a str, &'a str),
}

impl Objects<'_> {
    fn metadata(&self, wish: &Wish, name: &str) -> Value {
        let volume = &wish.volume;
        let pairs = [
            ("app.kubernetes.io/name", "larder-holder".to_owned()),
            ("app.kubernetes.io/managed-by", MANAGER.to_owned()),
            (ID, volume.id.to_string()),
            (GENERATION, volume.generation.to_string()),
            (TENANT, volume.tenant.to_string()),
            (NODE, node_label(self.node.0)),
            (HOLDS, wish.claim.clone()),
        ];
        json!({
            "name": name,
            "namespace": self.settings.namespace,
            "labels": pairs.into_iter().collect::<BTreeMap<_, _>>(),
            "annotations": {
                IMAGE_CACHE: wish.cache(),
                NODE: self.node.0,
                // Of a node that goes, both are deleted; neither keeps it.
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

    /// The claim, restored from the snapshot.
    pub(super) fn claim(&self, wish: &Wish) -> Value {
        let mut claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": self.metadata(wish, &wish.claim),
            "spec": {
                "accessModes": [self.settings.access_mode],
                "volumeMode": "Filesystem",
                "dataSource": {
                    "apiGroup": "snapshot.storage.k8s.io",
                    "kind": "VolumeSnapshot",
                    "name": object(&wish.volume),
                },
                "resources": {"requests": {"storage": wish.size.to_string()}},
            },
        });
        // Without the key it is the default class; with an empty one it would be none.
        if !self.settings.storage_class.is_empty() {
            claim["spec"]["storageClassName"] = json!(self.settings.storage_class);
        }
        claim
    }

    /// The pod that holds it. `before` are those that hold it still and are on their way out: each set of them has a successor
    /// of its own name, so that one made twice is made once, and none waits for the end of another. While a node has any pod
    /// with the claim, the cluster leaves the disk where it is.
    pub(super) fn holder(&self, wish: &Wish, before: &[&Pod]) -> Value {
        let mut uids: Vec<String> = before.iter().filter_map(|pod| pod.uid()).collect();
        uids.sort();
        let name = format!("{}-{}", wish.claim, &Digest::sha256(uids.join(",").as_bytes()).hex()[..4]);
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": self.metadata(wish, &name),
            "spec": {
                "restartPolicy": "Always",
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                // It stays for 10 s, until its successor has the claim, too (`larder node hold`).
                "terminationGracePeriodSeconds": 30,
                // Not spec.nodeName: a claim that waits for its first consumer is bound by the scheduler alone.
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchFields": [
                        {"key": "metadata.name", "operator": "In", "values": [self.node.0]},
                    ]}],
                }}},
                // As a DaemonSet's: a drain, or a full disk, is no reason to take a disk from under containers.
                "tolerations": [{"operator": "Exists"}],
                // No fsGroup: files on the volume are what the seal says.
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": NOBODY,
                    "runAsGroup": NOBODY,
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
                    "persistentVolumeClaim": {"claimName": wish.claim, "readOnly": true},
                }],
            },
        })
    }
}

/// Whether a claim is what [`Objects::claim`] makes: one whose source was dropped, which an API server may do without a word
/// (facts/kubernetes.md, 1), would give an empty volume, and one of another node is a collision of names.
pub(super) fn fits(claim: &PersistentVolumeClaim, wish: &Wish, node: &str) -> bool {
    let source = claim.spec.as_ref().and_then(|spec| spec.data_source.as_ref());
    let restored =
        source.is_some_and(|source| source.kind == "VolumeSnapshot" && source.name == object(&wish.volume));
    restored && is_of(&claim.metadata, node)
}

#[cfg(test)]
pub(super) mod tests {
    use kube_cel::{VapEvaluator, VapExpression};
    use serde_json::{Value, json};

    use super::super::wish::tests::{cache, named};
    use super::*;

    /// The evaluator knows no `extra` of its own requests, so that a request is given as parameters; and it takes every map for
    /// an object, whose fields have escaped names (apiserver pkg/cel/escaping.go).
    pub(in super::super) fn of_evaluator(expression: &str) -> String {
        let mut expression = expression.replace("request.", "params.");
        for key in ["authentication.kubernetes.io/node-name", "larder.dev/node", "cache.larder.dev/"] {
            let escaped = key.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__");
            expression = expression.replace(key, &escaped);
        }
        expression
    }

    /// The rules of the shipped policies that are for the request, over it as API servers show it; all of them hold, or it is
    /// denied.
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
            // Another node's claim, which the agent would make its own.
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
    fn the_policy_lets_an_agent_have_its_own_node_alone() {
        let caches = [cache("team-a", "web", &[], |_| {})];
        let wish = super::super::wish::decide(&named("team-a/web"), &caches, "node-a", 1).wishes.remove(0);
        let settings = Node::default();
        let objects = Objects { settings: &settings, node: ("node-a", "uid") };
        let (claim, holder) = (objects.claim(&wish), objects.holder(&wish, &[]));
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
