//! Tests of Jobs and their pods, with a shell script instead of the builder.

mod policies;

use std::fs;
use std::time::Duration;

use futures_util::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::super::{Cluster, DRIVER, Effect, Fault, Node, Timing};
use super::{refused, typed, until};

const NAMESPACE: &str = "larder";

struct World {
    cluster: Cluster,
    /// Directory of the scripts.
    scripts: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        World::with(Timing::default())
    }

    fn with(timing: Timing) -> Self {
        let cluster = Cluster::with_timing(timing);
        cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}));
        cluster.install_storage("Delete");
        let world = World { cluster, scripts: tempfile::tempdir().unwrap() };
        world.add_node("node-a");
        world
    }

    fn add_node(&self, name: &str) {
        self.cluster.add_node(Node {
            name: name.to_owned(),
            labels: vec![("disk".to_owned(), "fast".to_owned())],
            program: "/bin/sh".into(),
            images: Some(vec!["larder:1".to_owned()]),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        });
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.cluster.admin(), NAMESPACE)
    }

    /// Creates a Job whose builder is a script. Its arguments are the volume, the secrets and the termination
    /// message.
    async fn start(&self, script: &str, change: Value) -> Job {
        let path = self.scripts.path().join("builder");
        fs::write(&path, script).unwrap();
        let mut job = json!({"metadata": {"name": "build"}, "spec": {
            "backoffLimit": 1,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": "builder", "operator": "In", "values": [64, 65]}},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]},
            "template": {"spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "builder", "image": "larder:1",
                    "args": [path, "/cache", "/run/auth", "--result=/dev/termination-log"],
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [
                        {"name": "cache", "mountPath": "/cache"}, {"name": "auth", "mountPath": "/run/auth"},
                    ],
                }],
                "volumes": [
                    {"name": "cache", "persistentVolumeClaim": {"claimName": "build"}},
                    {"name": "auth", "secret": {"secretName": "build", "defaultMode": 0o400, "items": [
                        {"key": "auth-0.json", "path": "default/pull/.dockerconfigjson"},
                    ]}},
                ],
            }},
        }});
        json_patch::merge(&mut job["spec"], &change);
        self.api::<Job>().create(&PostParams::default(), &typed(job)).await.unwrap()
    }

    async fn claim(&self) {
        let claim: PersistentVolumeClaim = typed(json!({"metadata": {"name": "build"}, "spec": {
            "accessModes": ["ReadWriteOncePod"], "storageClassName": "csi", "resources": {"requests": {"storage": "1Gi"}},
        }}));
        self.api::<PersistentVolumeClaim>().create(&PostParams::default(), &claim).await.unwrap();
    }

    async fn secret(&self) {
        let secret: Secret =
            typed(json!({"metadata": {"name": "build"}, "stringData": {"auth-0.json": "{\"auths\":{}}"}}));
        self.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    }

    async fn job(&self) -> JobStatus {
        self.api::<Job>().get("build").await.unwrap().status.unwrap_or_default()
    }

    /// Waits for a condition of the Job and returns its reason.
    async fn ended(&self, condition: &str) -> String {
        let status = until(condition, async || {
            let status = self.job().await;
            let met = status.conditions.iter().flatten().find(|c| c.type_ == condition && c.status == "True");
            met.map(|met| met.reason.clone().unwrap_or_default())
        });
        status.await
    }

    async fn pods(&self) -> Vec<Pod> {
        self.api::<Pod>().list(&ListParams::default().labels("job-name=build")).await.unwrap().items
    }

    /// Waits until the first pod is waiting for this reason.
    async fn waits(&self, reason: &str) -> Pod {
        until(reason, async || {
            let pod = self.pods().await.into_iter().next()?;
            let status = serde_json::to_value(pod.status.clone().unwrap_or_default()).unwrap();
            (status.pointer("/containerStatuses/0/state/waiting/reason")? == reason).then_some(pod)
        })
        .await
    }

    async fn running(&self) -> Pod {
        until("a running pod", async || {
            let pods = self.pods().await;
            pods.into_iter().find(|pod| pod.status.as_ref().unwrap().phase.as_deref() == Some("Running"))
        })
        .await
    }

    fn has_event(&self, reason: &str) -> bool {
        self.cluster.peek_all("events.k8s.io", "events", "").iter().any(|event| event["reason"] == reason)
    }
}

fn terminated(pod: &Pod) -> (i32, String) {
    let status = pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap();
    let state = status[0].state.as_ref().unwrap().terminated.as_ref().unwrap();
    (state.exit_code, state.message.clone().unwrap_or_default())
}

const GOOD: &str = r#"
set -e
echo '{"event":"begun"}'
echo "to standard error" >&2
test "$(stat -L -c %a "$2/default/pull/.dockerconfigjson")" = 400
cp "$2/default/pull/.dockerconfigjson" "$1/found"
echo '{"event":"done"}'
printf '{"sealed":true}' > "${3#--result=}"
"#;

#[tokio::test]
async fn a_job_runs_a_process_on_its_volume() {
    let world = World::new();
    // The same order as the controller: first the suspended Job, then its dependents.
    let job = world.start(GOOD, json!({"suspend": true})).await;
    world.ended("Suspended").await;
    assert!(world.pods().await.is_empty());
    world.claim().await;
    world.secret().await;
    let params = PatchParams::default();
    world
        .api::<Job>()
        .patch("build", &params, &Patch::Merge(json!({"spec": {"suspend": false}})))
        .await
        .unwrap();
    assert_eq!(world.ended("Complete").await, "CompletionsReached");
    let status = world.job().await;
    assert_eq!((status.succeeded, status.failed, status.active), (Some(1), None, None));
    let pod = world.pods().await.remove(0);
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Succeeded"));
    assert_eq!(terminated(&pod), (0, "{\"sealed\":true}".to_owned()));
    assert_eq!(pod.owner_references()[0].uid, job.uid().unwrap());
    let log = world.api::<Pod>().logs(&pod.name_any(), &LogParams::default()).await.unwrap();
    for line in ["{\"event\":\"begun\"}\n", "to standard error\n", "{\"event\":\"done\"}\n"] {
        assert!(log.contains(line), "{log}");
    }
    let last = LogParams { tail_lines: Some(1), ..LogParams::default() };
    assert_eq!(world.api::<Pod>().logs(&pod.name_any(), &last).await.unwrap().lines().count(), 1);
    let claim = world.api::<PersistentVolumeClaim>().get("build").await.unwrap();
    let volume = claim.spec.unwrap().volume_name.unwrap();
    let volume = world.cluster.peek("", "persistentvolumes", "", &volume).unwrap();
    assert_eq!(volume["spec"]["csi"]["driver"], DRIVER);
    let path = world.cluster.volume(volume["spec"]["csi"]["volumeHandle"].as_str().unwrap());
    assert_eq!(fs::read(path.join("found")).unwrap(), b"{\"auths\":{}}");
    assert!(path.join("lost+found").is_dir());
}

#[tokio::test]
async fn a_claim_stays_while_a_pod_refers_to_it() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    world.start(GOOD, json!({})).await;
    world.ended("Complete").await;
    let claims = world.api::<PersistentVolumeClaim>();
    claims.delete("build", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    // The pod has ended but still uses the claim.
    assert!(claims.get("build").await.unwrap().metadata.deletion_timestamp.is_some());
    world.api::<Job>().delete("build", &DeleteParams::background()).await.unwrap();
    until("the claim is gone", async || claims.get_opt("build").await.unwrap().is_none().then_some(())).await;
    until("the volume is gone", async || {
        world.cluster.peek_all("", "persistentvolumes", "").is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn exit_codes_determine_the_result() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    world.start("echo boom >&2; exit 65", json!({})).await;
    assert_eq!(world.ended("Failed").await, "PodFailurePolicy");
    let pods = world.pods().await;
    assert_eq!(pods.len(), 1);
    // Without a termination message, the end of the log is used.
    assert_eq!(terminated(&pods[0]), (65, "boom\n".to_owned()));
    world.api::<Job>().delete("build", &DeleteParams::foreground()).await.unwrap();
    until("the Job is gone", async || {
        world.api::<Job>().get_opt("build").await.unwrap().is_none().then_some(())
    })
    .await;

    world.start("exit 1", json!({})).await;
    assert_eq!(world.ended("Failed").await, "BackoffLimitExceeded");
    assert_eq!((world.pods().await.len(), world.job().await.failed), (2, Some(2)));
}

#[tokio::test]
async fn pending_pods_have_a_reason() {
    let world = World::new();
    world.start(GOOD, json!({})).await;
    let unschedulable = until("Unschedulable", async || {
        let pod = world.pods().await.into_iter().next()?;
        let conditions = pod.status?.conditions?;
        conditions.into_iter().find(|c| c.reason.as_deref() == Some("Unschedulable"))?.message
    });
    assert!(unschedulable.await.contains("persistentvolumeclaim \"build\" not found"));
    world.claim().await;
    let pod = world.waits("ContainerCreating").await;
    until("FailedMount", async || world.has_event("FailedMount").then_some(())).await;
    let log = refused(world.api::<Pod>().logs(&pod.name_any(), &LogParams::default()).await);
    assert_eq!(log.code, 400);
    assert!(log.message.contains("is waiting to start: ContainerCreating"), "{log}");
    world.secret().await;
    world.ended("Complete").await;
}

#[tokio::test]
async fn a_missing_image_is_waited_for() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    let container =
        |job: &mut Value| job["spec"]["template"]["spec"]["containers"][0]["image"] = "larder:2".into();
    let made = world.start(GOOD, json!({"suspend": true})).await;
    let mut changed = serde_json::to_value(&made).unwrap();
    container(&mut changed);
    world.api::<Job>().delete("build", &DeleteParams::background()).await.unwrap();
    let changed: Job = typed(json!({"metadata": {"name": "build"}, "spec": {
        "backoffLimit": 1, "template": {"spec": changed["spec"]["template"]["spec"]},
    }}));
    world.api::<Job>().create(&PostParams::default(), &changed).await.unwrap();
    world.waits("ImagePullBackOff").await;
}

#[tokio::test]
async fn a_deadline_deletes_the_pod_and_its_log() {
    let world = World::with(Timing { second: Duration::from_millis(200), ..Timing::default() });
    world.claim().await;
    world.secret().await;
    world.start("exec sleep 600", json!({"activeDeadlineSeconds": 2})).await;
    world.running().await;
    assert_eq!(world.ended("Failed").await, "DeadlineExceeded");
    until("the pod is gone", async || world.pods().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_deleted_pod_is_terminated_and_replaced() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    let script = "trap 'echo asked; exit 75' TERM; touch $1/begun; echo begun; while :; do sleep 0.05; done";
    world.start(script, json!({"backoffLimit": 3})).await;
    let pod = world.running().await;
    let pods = world.api::<Pod>();
    let follow = LogParams { follow: true, ..LogParams::default() };
    let log = pods.log_stream(&pod.name_any(), &follow).await.unwrap();
    let mut lines = log.lines();
    assert_eq!(lines.try_next().await.unwrap().as_deref(), Some("begun"));
    pods.delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    assert_eq!(lines.try_next().await.unwrap().as_deref(), Some("asked"));
    assert_eq!(lines.try_next().await.unwrap(), None);
    until("another pod", async || {
        let pods = world.pods().await;
        (pods.len() == 1 && pods[0].uid() != pod.uid()).then_some(())
    })
    .await;
    assert_eq!(world.job().await.failed, Some(1));
}

#[tokio::test]
async fn a_log_breaks_off() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    world.start("echo one; sleep 0.3; echo two", json!({})).await;
    let pod = world.running().await;
    let follow = LogParams { follow: true, ..LogParams::default() };
    world.cluster.fault(Fault::once("get", "pods/log", Effect::CutAfter(1)));
    let log = world.api::<Pod>().log_stream(&pod.name_any(), &follow).await.unwrap();
    let mut lines = log.lines();
    assert_eq!(lines.try_next().await.unwrap().as_deref(), Some("one"));
    lines.try_next().await.unwrap_err();
    let log = world.api::<Pod>().log_stream(&pod.name_any(), &follow).await.unwrap();
    assert_eq!(log.lines().try_collect::<Vec<_>>().await.unwrap(), ["one", "two"]);
}

#[tokio::test]
async fn a_container_without_memory_is_killed() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    world.start("exec sleep 600", json!({"backoffLimit": 0})).await;
    let pod = world.running().await;
    world.cluster.kill(NAMESPACE, &pod.name_any(), true);
    assert_eq!(world.ended("Failed").await, "BackoffLimitExceeded");
    let pod = world.api::<Pod>().get(&pod.name_any()).await.unwrap();
    let state = pod.status.unwrap().container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
    assert_eq!((state.exit_code, state.reason.as_deref()), (137, Some("OOMKilled")));
}

#[tokio::test]
async fn a_lost_node_keeps_its_pod_until_it_is_removed() {
    let world = World::new();
    world.claim().await;
    world.secret().await;
    world
        .start("test -e $1/second && exit 0; touch $1/second; exec sleep 600", json!({"backoffLimit": 0}))
        .await;
    let pod = world.running().await;
    until("the volume is touched", async || {
        let log = world.cluster.peek_all("storage.k8s.io", "volumeattachments", "");
        (!log.is_empty()).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.cluster.lose_node("node-a");
    let name = pod.name_any();
    until("the pod is being deleted", async || {
        world.api::<Pod>().get(&name).await.unwrap().metadata.deletion_timestamp
    })
    .await;
    let log = refused(world.api::<Pod>().logs(&name, &LogParams::default()).await);
    assert_eq!(log.code, 500);
    world.add_node("node-b");
    tokio::time::sleep(Duration::from_millis(200)).await;
    // It is unknown whether the pod has ended, so there is no other pod yet.
    assert_eq!(world.pods().await.len(), 1);
    world.cluster.remove_node("node-a");
    // A disruption is ignored; this Job allows no failure.
    assert_eq!(world.ended("Complete").await, "CompletionsReached");
    assert_eq!(world.job().await.failed, None);
}

#[tokio::test]
async fn finished_jobs_are_deleted_after_their_ttl() {
    let world = World::with(Timing { second: Duration::from_millis(100), ..Timing::default() });
    world.claim().await;
    world.secret().await;
    world.start(GOOD, json!({"ttlSecondsAfterFinished": 2})).await;
    world.ended("Complete").await;
    until("the Job is gone", async || {
        world.api::<Job>().get_opt("build").await.unwrap().is_none().then_some(())
    })
    .await;
    until("its pod is gone", async || world.pods().await.is_empty().then_some(())).await;
}
