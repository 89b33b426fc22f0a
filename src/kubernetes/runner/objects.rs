//! What a build is made of in the cluster: Job, Secret, PVC. Where layers are directories the pod is one of Pod Security
//! "baseline": root with the six capabilities that writing them takes, nothing that escapes, no token. Where they are images it is
//! one of "restricted": a user of no rights, to whose group the disk is given.
//!
//! ```text
//! /cache              the PVC
//! /run/larder/job     build.json, larder.toml        (Secret)
//! /run/larder/auth    <namespace>/<name>/.dockerconfigjson, in the order of the job   (the same Secret)
//! /run/larder/sign    key.pem, where volumes are signed   (a Secret of the operator's)
//! /tmp                64 MiB
//! ```

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::batch::v1::Job as KubeJob;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use crate::caches::pull_secrets::Content;
use crate::caches::volumes::VolumeId;
use crate::config::caches::Caches;
use crate::config::cluster::Cluster;
use crate::kubernetes::names::{Names, VOLUME, object};
use crate::model::job::{Job, LayerFormat};
use crate::model::pull_secret::PullSecretName;

/// The container.
pub(super) const CONTAINER: &str = "builder";
/// User and group of a builder that needs no rights: "nonroot" of many images, Larder's own among them.
const NOBODY: u32 = 65532;
/// Where the key lies by which volumes are signed, and its name there and in the Secret.
const SIGN: &str = "/run/larder/sign";
const SIGN_KEY: &str = "key.pem";
/// How much longer than its builder a Job may take, seconds: with its Job a pod is deleted, and what it said with it.
const MARGIN: i64 = 600;

/// What objects are made from.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) names: &'a Names,
    pub(super) cluster: &'a Cluster,
    pub(super) caches: &'a Caches,
    /// Of what is built.
    pub(super) layer_format: LayerFormat,
    pub(super) volume: &'a VolumeId,
    pub(super) job: &'a Job,
}

impl Parts<'_> {
    /// The Job, suspended: Secret and PVC are made when it is there to own them. `secrets` are the usable ones.
    pub(super) fn job(&self, secrets: &[(PullSecretName, Content)], seconds: i64) -> Value {
        let mut job = self.unsigned_job(secrets, seconds);
        if !self.cluster.sign_secret.is_empty() {
            let pod = &mut job["spec"]["template"]["spec"];
            let container = &mut pod["containers"][0];
            push(&mut container["args"], json!(format!("--sign-key={SIGN}/{SIGN_KEY}")));
            push(
                &mut container["volumeMounts"],
                json!({"name": "sign", "mountPath": SIGN, "readOnly": true}),
            );
            let secret = json!({
                "secretName": self.cluster.sign_secret,
                "defaultMode": self.secret_mode(),
                "items": [{"key": SIGN_KEY, "path": SIGN_KEY}],
            });
            push(&mut pod["volumes"], json!({"name": "sign", "secret": secret}));
        }
        job
    }

    fn unsigned_job(&self, secrets: &[(PullSecretName, Content)], seconds: i64) -> Value {
        let name = object(self.volume);
        let labels = self.names.labels(self.volume);
        let (job, auth) = items(secrets);
        let memory = match self.caches.build_memory.0 {
            0 => json!({"ephemeral-storage": "256Mi"}),
            bytes => json!({"memory": bytes.to_string(), "ephemeral-storage": "256Mi"}),
        };
        json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.names.namespace, "labels": labels},
            "spec": {
                "suspend": true,
                "parallelism": 1,
                "completions": 1,
                "backoffLimit": self.caches.build_retries,
                "activeDeadlineSeconds": seconds + MARGIN,
                // Larder removes it; this is for one that is never looked at again.
                "ttlSecondsAfterFinished": 86400,
                "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": [
                    // What no retry heals (model::class).
                    {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [64, 65, 73, 77]}},
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]},
                "template": {
                    "metadata": {
                        "labels": labels,
                        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
                    },
                    "spec": {
                        "restartPolicy": "Never",
                        "serviceAccountName": self.cluster.builder_service_account,
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "terminationGracePeriodSeconds": 60,
                        "securityContext": self.pod_security(),
                        "containers": [{
                            "name": CONTAINER,
                            "image": self.cluster.builder_image,
                            "imagePullPolicy": "IfNotPresent",
                            "args": [
                                "build",
                                "--config=/run/larder/job/larder.toml",
                                "--job=/run/larder/job/build.json",
                                "--secrets=/run/larder/auth",
                                format!("--volume={VOLUME}"),
                                "--output=json",
                                "--result-file=/dev/termination-log",
                            ],
                            "terminationMessagePath": "/dev/termination-log",
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "securityContext": {
                                "allowPrivilegeEscalation": false,
                                "readOnlyRootFilesystem": true,
                                "capabilities": self.capabilities(),
                            },
                            "resources": {
                                "requests": {"cpu": "500m", "memory": "256Mi", "ephemeral-storage": "64Mi"},
                                "limits": memory,
                            },
                            "volumeMounts": [
                                {"name": "cache", "mountPath": VOLUME},
                                {"name": "job", "mountPath": "/run/larder/job", "readOnly": true},
                                {"name": "auth", "mountPath": "/run/larder/auth", "readOnly": true},
                                {"name": "tmp", "mountPath": "/tmp"},
                            ],
                        }],
                        "volumes": [
                            {"name": "cache", "persistentVolumeClaim": {"claimName": name}},
                            {"name": "job", "secret": {"secretName": name, "defaultMode": self.secret_mode(), "items": job}},
                            self.auth_volume(&name, auth),
                            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
                        ],
                    },
                },
            },
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
        for (name, value) in user.as_object().into_iter().flatten() {
            context[name] = value.clone();
        }
        context
    }

    fn capabilities(&self) -> Value {
        match self.layer_format {
            LayerFormat::Overlay => json!({
                "drop": ["ALL"],
                "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"],
            }),
            LayerFormat::Erofs => json!({"drop": ["ALL"]}),
        }
    }

    /// Of files from secrets: root's, or the group's that the pod gets.
    fn secret_mode(&self) -> u32 {
        match self.layer_format {
            LayerFormat::Overlay => 0o400,
            LayerFormat::Erofs => 0o440,
        }
    }

    /// With no item at all a volume would hold every key of the secret.
    fn auth_volume(&self, name: &str, items: Vec<Value>) -> Value {
        if items.is_empty() {
            return json!({"name": "auth", "emptyDir": {"sizeLimit": "1Mi"}});
        }
        let mode = self.secret_mode();
        json!({"name": "auth", "secret": {"secretName": name, "defaultMode": mode, "items": items}})
    }

    /// What the pod is given to read.
    pub(super) fn secret(
        &self,
        owner: &KubeJob,
        config: &str,
        secrets: &[(PullSecretName, Content)],
    ) -> Result<Value, serde_json::Error> {
        let mut data = Map::new();
        let mut put = |key: String, bytes: &[u8]| data.insert(key, BASE64_STANDARD.encode(bytes).into());
        put("build.json".to_owned(), &serde_json::to_vec(self.job)?);
        put("larder.toml".to_owned(), config.as_bytes());
        for (at, (_, content)) in secrets.iter().enumerate() {
            put(auth_key(at), content.expose());
        }
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": self.owned(owner),
            "immutable": true,
            "type": "Opaque",
            "data": data,
        }))
    }

    /// The disk that the pod fills.
    pub(super) fn claim(&self, owner: &KubeJob, size_gib: u64) -> Value {
        let mut claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": self.owned(owner),
            "spec": {
                "accessModes": [self.cluster.access_mode],
                "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": format!("{size_gib}Gi")}},
            },
        });
        // Without the key it is the default class; with an empty one it would be none.
        if !self.cluster.storage_class.is_empty() {
            claim["spec"]["storageClassName"] = json!(self.cluster.storage_class);
        }
        claim
    }

    /// The snapshot. Nobody owns it: it outlives Job and PVC.
    pub(super) fn snapshot(&self, result: &str) -> Value {
        let name = object(self.volume);
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {
                "name": name,
                "namespace": self.names.namespace,
                "labels": self.names.labels(self.volume),
                "annotations": {crate::kubernetes::names::RESULT: result},
            },
            "spec": {
                "volumeSnapshotClassName": self.cluster.snapshot_class,
                "source": {"persistentVolumeClaimName": name},
            },
        })
    }

    fn owned(&self, owner: &KubeJob) -> Value {
        json!({
            "name": object(self.volume),
            "namespace": self.names.namespace,
            "labels": self.names.labels(self.volume),
            "ownerReferences": [{
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": owner.name_any(),
                "uid": owner.uid(),
                "controller": true,
                "blockOwnerDeletion": false,
            }],
        })
    }
}

fn push(list: &mut Value, item: Value) {
    if let Some(list) = list.as_array_mut() {
        list.push(item);
    }
}

fn auth_key(at: usize) -> String {
    format!("auth-{at}.json")
}

/// Keys of the secret and the paths that they are mounted at.
fn items(secrets: &[(PullSecretName, Content)]) -> (Vec<Value>, Vec<Value>) {
    let job = ["build.json", "larder.toml"].map(|name| json!({"key": name, "path": name}));
    let auth = secrets.iter().enumerate().map(|(at, (name, content))| {
        let path = format!("{}/{}/{}", name.namespace(), name.name(), content.form.file_name());
        json!({"key": auth_key(at), "path": path})
    });
    (job.into(), auth.collect())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};

    use super::*;
    use crate::caches::pull_secrets::Form;

    #[test]
    fn objects_are_what_kubernetes_has() {
        let names = Names { namespace: "larder".into() };
        let cluster = Cluster { storage_class: "fast".into(), ..Cluster::default() };
        let id = "8f14e45f-ceea-4e7a-9c2b-0123456789ab".parse().unwrap();
        let volume = VolumeId { tenant: "team".parse().unwrap(), id, generation: 1 };
        let job = Job::parse(br#"{"images":["a:1"]}"#).unwrap();
        let (caches, layer_format) = (Caches::default(), LayerFormat::Overlay);
        let parts = Parts {
            names: &names,
            cluster: &cluster,
            caches: &caches,
            layer_format,
            volume: &volume,
            job: &job,
        };
        let content = |text: &str, form| Content::parse(form, text.as_bytes().to_vec()).unwrap();
        let secrets = [
            ("team:b".parse().unwrap(), content(r#"{"auths":{}}"#, Form::DockerConfigJson)),
            ("team:a".parse().unwrap(), content("{}", Form::DockerCfg)),
        ];
        let json = parts.job(&secrets, 3600);
        let typed: KubeJob = serde_json::from_value(json.clone()).unwrap();
        // Nothing of what was written is unknown to the types.
        let back = serde_json::to_value(&typed).unwrap();
        assert_eq!(back, json);
        let pod = &json["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"][2]["secret"]["items"][0]["path"], "team/b/.dockerconfigjson");
        assert_eq!(pod["volumes"][2]["secret"]["items"][1]["path"], "team/a/.dockercfg");
        assert_eq!(json["spec"]["activeDeadlineSeconds"], 4200);
        assert_eq!(
            parts.job(&[], 1)["spec"]["template"]["spec"]["volumes"][2]["emptyDir"]["sizeLimit"],
            "1Mi"
        );
        let signing = Cluster { sign_secret: "sign".into(), ..cluster.clone() };
        let signed = Parts { cluster: &signing, ..parts }.job(&secrets, 1);
        let typed_again: KubeJob = serde_json::from_value(signed.clone()).unwrap();
        assert_eq!(serde_json::to_value(&typed_again).unwrap(), signed);
        let pod = &signed["spec"]["template"]["spec"];
        assert_eq!(pod["volumes"][4]["secret"]["secretName"], "sign");
        assert_eq!(pod["volumes"][4]["secret"]["defaultMode"], 0o400);
        assert_eq!(pod["containers"][0]["volumeMounts"][4]["readOnly"], true);
        assert_eq!(pod["containers"][0]["args"][7], "--sign-key=/run/larder/sign/key.pem");
        let images = Parts { layer_format: LayerFormat::Erofs, ..parts };
        let pod = &images.job(&secrets, 1)["spec"]["template"]["spec"];
        let _: k8s_openapi::api::core::v1::PodSpec = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let signed = Parts { cluster: &signing, ..images }.job(&[], 1);
        let volumes = &signed["spec"]["template"]["spec"]["volumes"];
        assert_eq!(volumes[4]["secret"]["defaultMode"], 0o440);
        assert_eq!(pod["containers"][0]["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
        let mut owner = typed;
        owner.metadata.uid = Some("u".into());
        let secret: Secret = serde_json::from_value(parts.secret(&owner, "", &secrets).unwrap()).unwrap();
        assert_eq!(secret.data.unwrap()["auth-1.json"].0, b"{}");
        assert_eq!(secret.metadata.owner_references.unwrap()[0].uid, "u");
        let claim: PersistentVolumeClaim = serde_json::from_value(parts.claim(&owner, 20)).unwrap();
        assert_eq!(claim.spec.unwrap().storage_class_name.unwrap(), "fast");
    }
}
