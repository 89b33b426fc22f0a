//! `larder build` as a pod runs it, with a cluster's Job, Secret and claim. A kubelet starts the real
//! builder, and the result is a snapshot of the sealed volume.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_fake_kubernetes::{Cluster, Node};
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::served::random;
use crate::harness::{Need, isolated, larder, succeed};

const NEEDS: &[Need] = &[Need::Program("docker-registry"), Need::Program("htpasswd")];
const NAMESPACE: &str = "larder";

struct World {
    cluster: Cluster,
    registry: Registry,
    reference: String,
}

impl World {
    /// Creates a cluster with one node, and a registry with one image.
    fn new(layer: LayerBuilder) -> Self {
        let registry = Registry::with_password();
        let image = Image::builder(Format::Oci).layer(Layer::from(layer.gzip())).build();
        let reference = registry.push(&image, "team/app", "1");
        let cluster = Cluster::new();
        cluster.install(&json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "baseline"}},
        }));
        cluster.install(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "builder", "namespace": NAMESPACE},
        }));
        cluster.install_storage("Delete");
        cluster.add_node(Node {
            name: "node-a".to_owned(),
            labels: Vec::new(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_larder")),
            images: None,
            environment: Vec::new(),
        });
        World { cluster, registry, reference }
    }

    /// Creates the objects of facts/kubernetes.md, 1.
    fn build(&self, password: &str) {
        let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
        let auths = json!({"auths": {self.registry.host(): {"auth": auth}}});
        let job = json!({"images": [self.reference], "size": "1GiB", "pull_secrets": ["team:pull"]});
        self.cluster.install(&json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ic", "namespace": NAMESPACE}, "immutable": true,
            "stringData": {"auth-0.json": auths.to_string(), "build.json": job.to_string()},
        }));
        self.cluster.install(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "ic", "namespace": NAMESPACE},
            "spec": {
                "accessModes": ["ReadWriteOncePod"], "storageClassName": "csi", "resources": {"requests": {"storage": "20Gi"}},
            },
        }));
        self.cluster.install(&json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "ic", "namespace": NAMESPACE},
            "spec": {
                "backoffLimit": 3, "activeDeadlineSeconds": 3600, "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": [{
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "builder", "operator": "In", "values": [64, 65, 73, 77]},
                }]},
                "template": {"spec": {
                    "restartPolicy": "Never", "serviceAccountName": "builder", "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 60,
                    "securityContext": {"runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [{
                        "name": "builder", "image": "larder:1", "terminationMessagePolicy": "FallbackToLogsOnError",
                        "args": [
                            "build", "--job=/run/larder/job/build.json", "--secrets=/run/larder/auth", "--volume=/cache",
                            "--output=json", "--result-file=/dev/termination-log",
                        ],
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {
                                "drop": ["ALL"],
                                "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"],
                            },
                        },
                        "volumeMounts": [
                            {"name": "cache", "mountPath": "/cache"},
                            {"name": "job", "mountPath": "/run/larder/job", "readOnly": true},
                            {"name": "auth", "mountPath": "/run/larder/auth", "readOnly": true},
                        ],
                    }],
                    "volumes": [
                        {"name": "cache", "persistentVolumeClaim": {"claimName": "ic"}},
                        {"name": "job", "secret": {"secretName": "ic", "defaultMode": 0o400, "items": [
                            {"key": "build.json", "path": "build.json"},
                        ]}},
                        {"name": "auth", "secret": {"secretName": "ic", "defaultMode": 0o400, "items": [
                            {"key": "auth-0.json", "path": "team/pull/.dockerconfigjson"},
                        ]}},
                    ],
                }},
            },
        }));
    }

    /// Waits for the end of the Job. Returns its condition, the reason, and the only pod.
    fn ended(&self) -> (String, String, Value) {
        let (condition, reason) = until(|| {
            let job = self.cluster.peek("batch", "jobs", NAMESPACE, "ic")?;
            let conditions = job.pointer("/status/conditions")?.as_array()?.clone();
            let end = conditions.into_iter().find(|c| c["type"] == "Complete" || c["type"] == "Failed")?;
            Some((text(&end, "/type"), text(&end, "/reason")))
        });
        let mut pods = self.cluster.peek_all("", "pods", NAMESPACE);
        assert_eq!(pods.len(), 1, "{pods:#?}");
        (condition, reason, pods.remove(0)["status"]["containerStatuses"][0]["state"]["terminated"].take())
    }

    /// Takes a snapshot of the claim and returns its copy.
    fn snapshot(&self) -> PathBuf {
        self.cluster.install(&json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "ic", "namespace": NAMESPACE},
            "spec": {"volumeSnapshotClassName": "csi", "source": {"persistentVolumeClaimName": "ic"}},
        }));
        const GROUP: &str = "snapshot.storage.k8s.io";
        let content = until(|| {
            let snapshot = self.cluster.peek(GROUP, "volumesnapshots", NAMESPACE, "ic")?;
            let ready = snapshot.pointer("/status/readyToUse")? == true;
            ready.then(|| text(&snapshot, "/status/boundVolumeSnapshotContentName"))
        });
        let content = self.cluster.peek(GROUP, "volumesnapshotcontents", "", &content).unwrap();
        self.cluster.stored(&text(&content, "/status/snapshotHandle")).unwrap().path
    }
}

/// Waits until `probe` returns a value.
fn until<T>(probe: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "timeout");
        sleep(Duration::from_millis(20));
    }
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[case]
fn a_pod_fills_a_claim_and_its_snapshot_is_proven() {
    isolated(NEEDS, || {
        let world = World::new(LayerBuilder::new().file("etc/x", "x").dir("opaque"));
        world.build(PASSWORD);
        let (condition, reason, terminated) = world.ended();
        assert_eq!((condition.as_str(), reason.as_str()), ("Complete", "CompletionsReached"), "{terminated}");
        // The termination message is one line, the same as the last event.
        let result: Value = serde_json::from_str(&text(&terminated, "/message")).unwrap();
        assert_eq!((&terminated["exitCode"], &result["status"]), (&json!(0), &json!("ok")), "{result}");
        let copy = world.snapshot();
        let verified = succeed(larder().arg("verify").arg(&copy));
        assert!(verified.contains("sha256:"), "{verified}");
        assert!(copy.join("lost+found").is_dir());
    });
}

#[case]
fn a_pod_without_the_right_password_fails_its_job_at_once() {
    isolated(NEEDS, || {
        let world = World::new(LayerBuilder::new().file("etc/x", "x"));
        world.build("no longer");
        let (condition, reason, terminated) = world.ended();
        assert_eq!((condition.as_str(), reason.as_str()), ("Failed", "PodFailurePolicy"), "{terminated}");
        assert_eq!(terminated["exitCode"], 77, "{terminated}");
        assert!(text(&terminated, "/message").contains("team/app"), "{terminated}");
    });
}

#[case]
fn a_pod_on_a_small_claim_says_that_it_is_full() {
    isolated(NEEDS, || {
        let small = FileSystem::new(Kind::Tmpfs, 16 << 20);
        let world = World::new(LayerBuilder::new().file("large", random(1, 32 << 20)));
        world.cluster.put_volumes(&small.path());
        world.build(PASSWORD);
        let (condition, reason, terminated) = world.ended();
        assert_eq!((condition.as_str(), reason.as_str()), ("Failed", "PodFailurePolicy"), "{terminated}");
        assert_eq!(terminated["exitCode"], 73, "{terminated}");
    });
}
