//! What the Jobs of builders and verifiers have in common, and the rights of their pods.

use serde_json::{Value, json};

use super::Parts;
use larder_model::job::LayerFormat;

/// User and group of a pod that needs no rights: "nonroot" of many images, Larder's own among them.
const NOBODY: u32 = 65532;
/// How much longer than its builder a Job may take, seconds: with its Job a pod is deleted, and what it said with it.
const MARGIN: i64 = 600;

/// What the pods of a Job do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kubernetes::runner) enum Role {
    /// Fills the volume from registries.
    Builder,
    /// Reads the sealed volume, and nothing else.
    Verifier,
}

impl Role {
    /// Name of the container; also what messages call it.
    pub(in crate::kubernetes::runner) fn container(self) -> &'static str {
        match self {
            Role::Builder => "builder",
            Role::Verifier => "verifier",
        }
    }
}

impl Parts<'_> {
    /// A Job without its metadata: what builders and verifiers have in common. `pod` has containers and volumes.
    pub(super) fn workload(&self, role: Role, seconds: i64, pod: Value) -> Value {
        let labels = match role {
            Role::Builder => self.names.labels(self.volume),
            Role::Verifier => self.names.verifier_labels(self.volume),
        };
        let mut spec = json!({
            "restartPolicy": "Never",
            "serviceAccountName": self.cluster.builder_service_account,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 60,
            "securityContext": self.pod_security(),
        });
        merge(&mut spec, pod);
        let container = json!({
            "image": self.cluster.builder_image,
            "imagePullPolicy": "IfNotPresent",
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "FallbackToLogsOnError",
        });
        merge(&mut spec["containers"][0], container);
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "spec": {
                "parallelism": 1,
                "completions": 1,
                "backoffLimit": self.caches.build_retries,
                "activeDeadlineSeconds": seconds + MARGIN,
                // Larder removes it; this is for one that is never looked at again.
                "ttlSecondsAfterFinished": 86400,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": [
                    // What no retry heals (model::class).
                    {"action": "FailJob", "onExitCodes": {"containerName": role.container(), "operator": "In", "values": [64, 65, 73, 77]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]},
                "template": {
                    "metadata": {
                        "labels": labels,
                        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                    },
                    "spec": spec,
                },
            },
        })
    }

    /// Limits of a pod; `storage` is that of its temporary files.
    pub(super) fn resources(&self, role: Role, storage: &str) -> Value {
        let memory = match role {
            Role::Builder => self.caches.build_memory.0,
            // It holds the plan of a layer in memory, about 1 KiB for each file, which a builder does not.
            Role::Verifier => self.caches.build_memory.0.saturating_mul(2),
        };
        let limits = match memory {
            0 => json!({"ephemeral-storage": storage}),
            bytes => json!({"memory": bytes.to_string(), "ephemeral-storage": storage}),
        };
        json!({
            "requests": {"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
            "limits": limits,
        })
    }

    fn pod_security(&self) -> Value {
        let user = match self.layer_format {
            LayerFormat::Overlay => json!({"runAsUser": 0}),
            LayerFormat::Erofs => json!({
                "runAsNonRoot": true,
                "runAsUser": NOBODY,
                "runAsGroup": NOBODY,
                "fsGroup": NOBODY,
            }),
        };
        let mut context = json!({
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        merge(&mut context, user);
        context
    }

    /// A verifier reads what other users own, and changes nothing. Pod Security "baseline" has no DAC_READ_SEARCH.
    pub(super) fn verifier_capabilities(&self) -> Value {
        match self.layer_format {
            LayerFormat::Overlay => json!({"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}),
            LayerFormat::Erofs => json!({"drop": ["ALL"]}),
        }
    }

    pub(super) fn builder_capabilities(&self) -> Value {
        match self.layer_format {
            LayerFormat::Overlay => json!({
                "drop": ["ALL"],
                "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"],
            }),
            LayerFormat::Erofs => json!({"drop": ["ALL"]}),
        }
    }

    /// Of files from secrets: root's, or the group's that the pod gets.
    pub(super) fn secret_mode(&self) -> u32 {
        match self.layer_format {
            LayerFormat::Overlay => 0o400,
            LayerFormat::Erofs => 0o440,
        }
    }
}

pub(super) fn container_security(capabilities: Value) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": capabilities,
    })
}

/// Adds the members of one object to another.
fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}
