//! Tests of claims, snapshots and their contents.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use super::super::{Cluster, DRIVER, SnapshotOutcome};
use super::{refused, typed, until};

const NAMESPACE: &str = "larder";

struct World {
    cluster: Cluster,
}

impl World {
    fn new(policy: &str) -> Self {
        let cluster = Cluster::new();
        for name in [NAMESPACE, "team"] {
            cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        cluster.install_storage(policy);
        World { cluster }
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.cluster.admin(), NAMESPACE)
    }

    fn snapshots(&self, namespace: &str) -> Api<DynamicObject> {
        let resource = resource("VolumeSnapshot", "volumesnapshots");
        Api::namespaced_with(self.cluster.admin(), namespace, &resource)
    }

    fn contents(&self) -> Api<DynamicObject> {
        Api::all_with(self.cluster.admin(), &resource("VolumeSnapshotContent", "volumesnapshotcontents"))
    }

    async fn claim(&self, name: &str, change: Value) {
        let mut claim = json!({"metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOncePod"], "storageClassName": "csi", "resources": {"requests": {"storage": "1Gi"}},
        }});
        json_patch::merge(&mut claim["spec"], &change);
        self.claims().create(&PostParams::default(), &typed(claim)).await.unwrap();
    }

    /// Waits until a claim is bound and returns its directory.
    async fn bound(&self, name: &str) -> std::path::PathBuf {
        let volume = until("the claim is bound", async || {
            let claim = self.claims().get(name).await.unwrap();
            (claim.status?.phase? == "Bound").then_some(claim.spec?.volume_name?)
        });
        let volume = self.cluster.peek("", "persistentvolumes", "", &volume.await).unwrap();
        self.cluster.volume(volume["spec"]["csi"]["volumeHandle"].as_str().unwrap())
    }

    async fn snapshot(&self, name: &str, source: Value) -> kube::Result<DynamicObject> {
        let object = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
            "spec": {"volumeSnapshotClassName": "csi", "source": source},
        });
        self.snapshots(NAMESPACE).create(&PostParams::default(), &typed(object)).await
    }

    async fn ready(&self, namespace: &str, name: &str) -> Value {
        until("the snapshot is ready", async || {
            let found = self.snapshots(namespace).get(name).await.unwrap();
            (found.data["status"]["readyToUse"] == true).then(|| found.data["status"].clone())
        })
        .await
    }

    async fn gone(&self, namespace: &str, name: &str) {
        until("the snapshot is gone", async || {
            self.snapshots(namespace).get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
}

fn resource(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind), plural)
}

fn of(claim: &str) -> Value {
    json!({"persistentVolumeClaimName": claim})
}

#[tokio::test]
async fn a_snapshot_outlives_its_claim_and_is_restored() {
    let world = World::new("Delete");
    world.claim("a", json!({})).await;
    let path = world.bound("a").await;
    fs::write(path.join("layer"), "content").unwrap();
    fs::set_permissions(path.join("layer"), fs::Permissions::from_mode(0o6755)).unwrap();
    world.snapshot("s", of("a")).await.unwrap();
    let status = world.ready(NAMESPACE, "s").await;
    assert_eq!(status["restoreSize"], "1Gi");
    assert!(status.get("error").is_none() && status["creationTime"].is_string());
    let content =
        world.contents().get(status["boundVolumeSnapshotContentName"].as_str().unwrap()).await.unwrap();
    assert_eq!(content.data["spec"]["deletionPolicy"], "Delete");
    let handle = content.data["status"]["snapshotHandle"].as_str().unwrap().to_owned();
    assert!(!world.cluster.stored(&handle).unwrap().attached);
    let held = world.snapshots(NAMESPACE).get("s").await.unwrap();
    let held: Vec<_> = held.finalizers().iter().map(|name| name.rsplit('/').next().unwrap()).collect();
    assert_eq!(held, ["volumesnapshot-as-source-protection", "volumesnapshot-bound-protection"]);

    world.claims().delete("a", &DeleteParams::default()).await.unwrap();
    until("the claim is gone", async || world.claims().get_opt("a").await.unwrap().is_none().then_some(()))
        .await;
    let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    world.claim("b", json!({"accessModes": ["ReadOnlyMany"], "dataSource": source})).await;
    let restored = world.bound("b").await;
    assert_eq!(fs::read_to_string(restored.join("layer")).unwrap(), "content");
    assert_eq!(fs::metadata(restored.join("layer")).unwrap().permissions().mode() & 0o7777, 0o6755);
    // The claim is smaller than its source.
    world.claim("c", json!({"dataSource": source, "resources": {"requests": {"storage": "1Mi"}}})).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.claims().get("c").await.unwrap().status.unwrap().phase.as_deref(), Some("Pending"));
    // A running restore keeps the snapshot.
    world.snapshots(NAMESPACE).delete("s", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.snapshots(NAMESPACE).get_opt("s").await.unwrap().is_some());
    world.claims().delete("c", &DeleteParams::default()).await.unwrap();
    world.gone(NAMESPACE, "s").await;
    assert!(world.cluster.stored(&handle).is_none());
    assert!(world.contents().list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_copy_stays_ready_after_its_storage_is_deleted() {
    let world = World::new("Delete");
    world.claim("a", json!({})).await;
    world.bound("a").await;
    world.snapshot("s", of("a")).await.unwrap();
    let status = world.ready(NAMESPACE, "s").await;
    let content =
        world.contents().get(status["boundVolumeSnapshotContentName"].as_str().unwrap()).await.unwrap();
    let handle = content.data["status"]["snapshotHandle"].as_str().unwrap();
    let copy = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": "s-team"},
        "spec": {
            "deletionPolicy": "Retain", "driver": DRIVER, "source": {"snapshotHandle": handle},
            "sourceVolumeMode": "Filesystem", "volumeSnapshotRef": {"name": "s", "namespace": "team"},
        },
    });
    world.contents().create(&PostParams::default(), &typed(copy)).await.unwrap();
    let object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "s"},
        "spec": {"source": {"volumeSnapshotContentName": "s-team"}},
    });
    world.snapshots("team").create(&PostParams::default(), &typed(object)).await.unwrap();
    world.ready("team", "s").await;
    // The owner is deleted first, although the copy still exists.
    world.snapshots(NAMESPACE).delete("s", &DeleteParams::default()).await.unwrap();
    world.gone(NAMESPACE, "s").await;
    assert_eq!(world.cluster.stored_snapshots(), 0);
    world.ready("team", "s").await;
    // Retain leaves the content behind.
    world.snapshots("team").delete("s", &DeleteParams::default()).await.unwrap();
    world.gone("team", "s").await;
    let left = world.contents().get("s-team").await.unwrap();
    assert_eq!(left.annotations()["snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"], "yes");
    world.contents().delete("s-team", &DeleteParams::default()).await.unwrap();
    until("the content is gone", async || {
        world.contents().get_opt("s-team").await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_class_with_retain_leaks_snapshots() {
    let world = World::new("Retain");
    world.claim("a", json!({})).await;
    world.bound("a").await;
    for (name, change, left) in [("s", false, 1), ("t", true, 1)] {
        world.snapshot(name, of("a")).await.unwrap();
        let status = world.ready(NAMESPACE, name).await;
        let content = status["boundVolumeSnapshotContentName"].as_str().unwrap();
        if change {
            let delete = Patch::Merge(json!({"spec": {"deletionPolicy": "Delete"}}));
            world.contents().patch(content, &PatchParams::default(), &delete).await.unwrap();
        }
        world.snapshots(NAMESPACE).delete(name, &DeleteParams::default()).await.unwrap();
        world.gone(NAMESPACE, name).await;
        until("the remaining snapshots in the storage", async || {
            (world.cluster.stored_snapshots() == left).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn errors_are_temporary_or_permanent() {
    let world = World::new("Delete");
    world.claim("a", json!({})).await;
    world.bound("a").await;
    let fails = |times| SnapshotOutcome::Fails { message: "no space in the pool".to_owned(), times };
    world.cluster.decide_snapshot(fails(3));
    world.snapshot("heals", of("a")).await.unwrap();
    until("the error is reported", async || {
        let found = world.snapshots(NAMESPACE).get("heals").await.unwrap();
        let status = &found.data["status"];
        let reported = status["error"]["message"].as_str()?.contains("no space in the pool");
        (reported && status["readyToUse"] == false).then_some(())
    })
    .await;
    assert!(world.ready(NAMESPACE, "heals").await.get("error").is_none());

    world.cluster.decide_snapshot(fails(u32::MAX));
    world.snapshot("never", of("a")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_ne!(world.snapshots(NAMESPACE).get("never").await.unwrap().data["status"]["readyToUse"], true);
    world.snapshots(NAMESPACE).delete("never", &DeleteParams::default()).await.unwrap();
    world.gone(NAMESPACE, "never").await;

    world.cluster.decide_snapshot(SnapshotOutcome::Uploads(Duration::from_millis(300)));
    world.snapshot("uploads", of("a")).await.unwrap();
    until("it is cut", async || {
        let found = world.snapshots(NAMESPACE).get("uploads").await.unwrap();
        let status = &found.data["status"];
        (status["creationTime"].is_string() && status["readyToUse"] == false).then_some(())
    })
    .await;
    world.ready(NAMESPACE, "uploads").await;

    // Until the driver responds, it is unknown whether a snapshot exists.
    world.cluster.decide_snapshot(SnapshotOutcome::Hangs);
    world.snapshot("hangs", of("a")).await.unwrap();
    until("it is requested", async || {
        let found = world.snapshots(NAMESPACE).get("hangs").await.unwrap();
        found.data["status"]["boundVolumeSnapshotContentName"].as_str().map(str::to_owned)
    })
    .await;
    world.snapshots(NAMESPACE).delete("hangs", &DeleteParams::default()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.snapshots(NAMESPACE).get_opt("hangs").await.unwrap().is_some());
    world.cluster.heal_snapshots();
    world.gone(NAMESPACE, "hangs").await;
    until("only the known snapshots are stored", async || {
        (world.cluster.stored_snapshots() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rules_of_snapshots_are_enforced() {
    let world = World::new("Delete");
    let both = json!({"persistentVolumeClaimName": "a", "volumeSnapshotContentName": "b"});
    let both = refused(world.snapshot("s", both).await);
    assert_eq!(both.code, 422);
    assert!(both.message.contains("exactly one of"), "{both}");
    world.snapshot("s", of("absent")).await.unwrap();
    until("the error is reported", async || {
        let found = world.snapshots(NAMESPACE).get("s").await.unwrap();
        found.data["status"]["error"]["message"].as_str().map(str::to_owned)
    })
    .await;
    let other = Patch::Merge(json!({"spec": {"source": of("b")}}));
    let fixed = refused(world.snapshots(NAMESPACE).patch("s", &PatchParams::default(), &other).await);
    assert_eq!(fixed.code, 422);
    assert!(fixed.message.contains("persistentVolumeClaimName is immutable"), "{fixed}");
    let unnamed = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": "c"},
        "spec": {
            "deletionPolicy": "Retain", "driver": DRIVER, "source": {"snapshotHandle": "x"},
            "volumeSnapshotRef": {"name": "s"},
        },
    });
    let unnamed = refused(world.contents().create(&PostParams::default(), &typed(unnamed)).await);
    assert!(unnamed.message.contains("both spec.volumeSnapshotRef.name and"), "{unnamed}");
}

#[tokio::test]
async fn a_claim_without_a_class_stays_pending() {
    let world = World::new("Delete");
    world.claim("a", json!({"storageClassName": "none"})).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.claims().get("a").await.unwrap().status.unwrap().phase.as_deref(), Some("Pending"));
    let events = world.cluster.peek_all("events.k8s.io", "events", NAMESPACE);
    assert!(events.iter().any(|event| event["note"] == "storageclass.storage.k8s.io \"none\" not found"));
}
