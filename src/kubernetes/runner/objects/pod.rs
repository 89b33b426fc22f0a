//! The common part of the Jobs of builders and verifiers, and the privileges of their pods.

use serde_json::{Value, json};

use super::Parts;
use larder_model::job::LayerFormat;

/// User and group of an unprivileged pod: "nonroot" in many images, including Larder's own.
const UNPRIVILEGED_ID: u32 = 65532;
/// Additional time of a Job after the time limit of its builder, seconds. A pod is deleted with its Job,
/// together with its termination message.
const MARGIN: i64 = 600;

/// The task of the pods of a Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kubernetes::runner) enum Role {
    /// Fills the volume from registries.
    Builder,
    /// Reads only the sealed volume.
    Verifier,
}

impl Role {
    /// Returns the name of the container, which messages also use.
    pub(in crate::kubernetes::runner) fn container(self) -> &'static str {
        match self {
            Role::Builder => "builder",
            Role::Verifier => "verifier",
        }
    }
}

impl Parts<'_> {
    /// Returns a Job without metadata: the common part of builders and verifiers. `pod` contains containers
    /// and volumes.
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
                // Larder deletes the Job. This is a fallback for Jobs that no daemon sees again.
                "ttlSecondsAfterFinished": 86400,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": [
                    // Failures that a retry does not fix (model::class).
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

    /// Returns requests and limits of a pod. `storage` limits its temporary files.
    pub(super) fn resources(&self, role: Role, storage: &str) -> Value {
        let memory = match role {
            Role::Builder => self.caches.build_memory.0,
            // Unlike a builder, it keeps the plan of a layer in memory, about 1 KiB for each file.
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
                "runAsUser": UNPRIVILEGED_ID,
                "runAsGroup": UNPRIVILEGED_ID,
                "fsGroup": UNPRIVILEGED_ID,
            }),
        };
        let mut context = json!({
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        merge(&mut context, user);
        context
    }

    /// Returns the capabilities of a verifier. It reads files of other users and changes nothing. Pod
    /// Security "baseline" does not allow DAC_READ_SEARCH.
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

    /// Returns the mode of files from secrets: readable by root, or by the group of the pod.
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
