//! The objects of a build in the cluster: Job, Secret, PVC, and the Job that verifies the PVC afterwards. If
//! layers are directories, the pods fit Pod Security "baseline": root with the six capabilities that are
//! needed to write layers, no privilege escalation, no token. If layers are images, they fit "restricted": an
//! unprivileged user whose group owns the disk.
//!
//! ```text
//! /cache              PVC
//! /run/larder/job     build.json, larder.toml        (Secret)
//! /run/larder/auth    <namespace>/<name>/.dockerconfigjson, in the order of the job   (same Secret)
//! /run/larder/sign    key.pem, if volumes are signed   (Secret of the operator)
//! /tmp                emptyDir, 64 MiB
//! ```
//!
//! The verifier gets `/cache`, read-only, and a `/tmp` of 1 GiB.

mod pod;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::batch::v1::Job as KubeJob;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

pub(super) use self::pod::Role;
use self::pod::container_security;
use crate::caches::pull_secrets::Content;
use crate::caches::volumes::VolumeId;
use crate::config::caches::Caches;
use crate::config::cluster::Cluster;
use crate::kubernetes::names::{Names, RESULT, VERIFIED, VOLUME, object, verifier};
use larder_model::digest::Digest;
use larder_model::job::{Job, LayerFormat};
use larder_model::pull_secret::PullSecretName;

/// Directory of the key that signs volumes.
const SIGN: &str = "/run/larder/sign";
const SIGN_KEY: &str = "key.pem";

/// The inputs of all objects of a build.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) names: &'a Names,
    pub(super) cluster: &'a Cluster,
    pub(super) caches: &'a Caches,
    /// Format of the layers to build.
    pub(super) layer_format: LayerFormat,
    pub(super) volume: &'a VolumeId,
    pub(super) job: &'a Job,
}

impl Parts<'_> {
    /// Returns the Job, suspended, because it must exist before the Secret and the PVC that it owns.
    /// `secrets` are the usable ones.
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
        let (job, auth) = items(secrets);
        let pod = json!({
            "containers": [{
                "name": Role::Builder.container(),
                "args": [
                    "build",
                    "--config=/run/larder/job/larder.toml",
                    "--job=/run/larder/job/build.json",
                    "--secrets=/run/larder/auth",
                    format!("--volume={VOLUME}"),
                    "--output=json",
                    "--result-file=/dev/termination-log",
                ],
                "securityContext": container_security(self.builder_capabilities()),
                "resources": self.resources(Role::Builder, "256Mi"),
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
        });
        let mut job = self.workload(Role::Builder, seconds, pod);
        job["metadata"] = json!({
            "name": name,
            "namespace": self.names.namespace,
            "labels": self.names.labels(self.volume),
        });
        // The Job must exist before the Secret and the PVC that it owns.
        job["spec"]["suspend"] = json!(true);
        job
    }

    /// Returns the Job that verifies the volume of `build`. `build` owns it and must have ended. The volume
    /// must contain the cache `digest`.
    ///
    /// Its pod gets only the volume, read-only: no pull secret, no key, no configuration, no token, and
    /// labels for which no network policy permits traffic.
    pub(super) fn verifier(&self, build: &KubeJob, digest: &Digest, seconds: i64) -> Value {
        let claim = json!({"claimName": object(self.volume), "readOnly": true});
        let pod = json!({
            "containers": [{
                "name": Role::Verifier.container(),
                "args": ["verify", format!("--digest={digest}"), VOLUME],
                "securityContext": container_security(self.verifier_capabilities()),
                "resources": self.resources(Role::Verifier, "1280Mi"),
                "volumeMounts": [
                    {"name": "cache", "mountPath": VOLUME, "readOnly": true},
                    {"name": "tmp", "mountPath": "/tmp"},
                ],
            }],
            "volumes": [
                {"name": "cache", "persistentVolumeClaim": claim},
                // A layer that is an image is written a second time; the part that does not fit in memory
                // goes here.
                {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
            ],
        });
        let mut job = self.workload(Role::Verifier, seconds, pod);
        job["metadata"] = self.owned(build);
        job["metadata"]["name"] = json!(verifier(self.volume));
        job["metadata"]["labels"] = json!(self.names.verifier_labels(self.volume));
        job
    }

    /// Returns the volume of the pull secrets. A secret volume without items would contain every key of the
    /// secret.
    fn auth_volume(&self, name: &str, items: Vec<Value>) -> Value {
        if items.is_empty() {
            return json!({"name": "auth", "emptyDir": {"sizeLimit": "1Mi"}});
        }
        let mode = self.secret_mode();
        json!({"name": "auth", "secret": {"secretName": name, "defaultMode": mode, "items": items}})
    }

    /// Returns the Secret with the input files of the builder.
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

    /// Returns the PVC that the builder fills.
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
        // Without the key, the default class is used; an empty value would mean no class.
        if !self.cluster.storage_class.is_empty() {
            claim["spec"]["storageClassName"] = json!(self.cluster.storage_class);
        }
        claim
    }

    /// Returns the snapshot of a volume in which the verifier found the cache `verified`. It has no owner,
    /// because it outlives Job and PVC.
    pub(super) fn snapshot(&self, result: &str, verified: &Digest) -> Value {
        let name = object(self.volume);
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {
                "name": name,
                "namespace": self.names.namespace,
                "labels": self.names.labels(self.volume),
                "annotations": {RESULT: result, VERIFIED: verified},
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

/// Returns the keys of the Secret with their mount paths: those of the job, and those of the pull secrets.
fn items(secrets: &[(PullSecretName, Content)]) -> (Vec<Value>, Vec<Value>) {
    let job = ["build.json", "larder.toml"].map(|name| json!({"key": name, "path": name}));
    let auth = secrets.iter().enumerate().map(|(at, (name, content))| {
        let path = format!("{}/{}/{}", name.namespace(), name.name(), content.form.file_name());
        json!({"key": auth_key(at), "path": path})
    });
    (job.into(), auth.collect())
}

#[cfg(test)]
mod tests;
