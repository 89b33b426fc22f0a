//! Runs the suite of all stores, and tests what is specific to this store: objects that other programs write.

use std::sync::Mutex;
use std::time::Duration;

use kube::CustomResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::*;
use crate::caches::record::RequestOrigin;
use crate::caches::store::suite::{self, OPEN, ROOM, at};
use crate::kubernetes::convert;
use crate::kubernetes::names::{FINALIZER, KEY, REQUEST};
use larder_fake_kubernetes::{Cluster, Effect, Fault as FakeFault, Timing};
use larder_model::class::Class;
use larder_model::digest::hex;
use larder_model::image_cache::Status;

/// Returns a cluster with the custom resource and the namespaces of the suite.
fn cluster() -> Cluster {
    cluster_with(Timing::default())
}

fn cluster_with(timing: Timing) -> Cluster {
    let cluster = Cluster::with_timing(timing);
    cluster.install(&serde_json::to_value(ImageCache::crd()).expect("a definition is JSON"));
    let teams = (0..60).map(|i| format!("team-{i}"));
    for name in ["larder", "a", "b", "c", "d"].into_iter().map(str::to_owned).chain(teams) {
        cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    }
    cluster
}

fn store(cluster: &Cluster, identity: &str) -> Arc<KubeStore> {
    Arc::new(KubeStore::new(cluster.admin(), "here", "larder", identity))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite() {
    let clusters = Mutex::new(Vec::new());
    let fresh = || {
        let cluster = cluster();
        let store = store(&cluster, "one");
        clusters.lock().unwrap().push(cluster);
        store as Arc<dyn Store>
    };
    suite::all(&fresh).await;
}

/// A create whose responses are lost and whose requests fail still makes exactly one record.
#[tokio::test(flavor = "multi_thread")]
async fn lost_answers() {
    for (verb, resource) in [
        ("create", "imagecaches"),
        ("update", "imagecaches/status"),
        ("patch", "configmaps"),
        ("update", "leases"),
        ("create", "leases"),
    ] {
        for harm in [Effect::NoAnswer, Effect::Broken, Effect::Refused] {
            let cluster = cluster();
            let store = store(&cluster, "one");
            cluster.fault(FakeFault::once(verb, resource, harm.clone()));
            let order = suite::record("a", "web", 1);
            let made = (*store).create(order.clone(), OPEN, suite::key("k", 1)).await;
            let Ok(Created::New(stored)) = made else { panic!("{verb} {resource} {harm:?}: {made:?}") };
            assert_eq!(store.list(None).await.unwrap(), std::slice::from_ref(&stored));
            let again = (*store).create(order, OPEN, suite::key("k", 1)).await.unwrap();
            assert_eq!(again, Created::Before(Box::new(stored.record)));
        }
    }
}

/// A daemon that stops between object, status and key has not lost the create.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_dies_in_the_middle() {
    for resource in ["imagecaches/status", "configmaps"] {
        let cluster = cluster();
        let (one, two) = (store(&cluster, "one"), store(&cluster, "two"));
        cluster.fault(
            FakeFault::once("", resource, Effect::Slow(Duration::from_secs(3600)))
                .after(u32::from(resource == "configmaps")),
        );
        let order = suite::record("a", "web", 1);
        let create = (*one).create(order.clone(), OPEN, suite::key("k", 1));
        assert!(tokio::time::timeout(Duration::from_secs(1), create).await.is_err());
        // The new daemon waits until the lease of the stopped one expires.
        let made = (*two).create(order, OPEN, suite::key("k", 1)).await.unwrap();
        let Created::Before(record) = made else { panic!("{made:?}") };
        let listed = two.list(None).await.unwrap();
        assert_eq!((listed.len(), listed[0].record.id), (1, record.id));
        // The response stays the same after the record is deleted.
        two.remove(record.id, listed[0].version).await.unwrap();
        let again = (*two).create(suite::record("a", "web", 2), OPEN, suite::key("k", 1)).await.unwrap();
        assert_eq!(again, Created::Before(record));
    }
}

/// Without a namespace of the tenant, no record can be created.
#[tokio::test]
async fn a_tenant_without_a_namespace() {
    let cluster = cluster();
    let store = store(&cluster, "one");
    let made = (*store).create(suite::record("nowhere", "web", 1), OPEN, None).await;
    assert!(matches!(made, Err(StoreError::NoNamespace(tenant)) if tenant.as_str() == "nowhere"));
    assert_eq!(store.list(Some("nowhere".parse().unwrap())).await.unwrap(), []);
}

/// A ResourceQuota refuses a create in the same way as Larder's own quota.
#[tokio::test]
async fn a_quota_of_the_cluster_refuses() {
    let cluster = cluster();
    cluster.install(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "larder", "namespace": "a"},
        "spec": {"hard": {"count/imagecaches.larder.dev": "1"}},
    }));
    let store = store(&cluster, "one");
    suite::create(&*store, suite::record("a", "web", 1)).await;
    let made = (*store).create(suite::record("a", "other", 1), OPEN, None).await;
    assert!(matches!(made, Err(StoreError::Quota { have: 1, .. })), "{made:?}");
}

/// A create waits until the usage of a quota is computed. If that takes too long, the failure is not the
/// tenant's.
#[tokio::test]
async fn a_quota_that_is_not_counted_yet() {
    for (count, waits) in [(Duration::from_millis(700), true), (Duration::from_secs(600), false)] {
        let cluster = cluster_with(Timing { count, ..Timing::default() });
        cluster.install(&json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "larder", "namespace": "a"},
            "spec": {"hard": {"count/imagecaches.larder.dev": "1"}},
        }));
        let made = (*store(&cluster, "one")).create(suite::record("a", "web", 1), OPEN, None).await;
        match made {
            Ok(Created::New(_)) => assert!(waits),
            Err(error) => assert_eq!((error.class(), waits), (Class::Transient, false), "{error}"),
            Ok(Created::Before(_)) => panic!("there was no record"),
        }
    }
}

/// A status that Larder did not write must stop every operation that would treat the record as absent.
#[tokio::test]
async fn an_unreadable_status_is_an_error() {
    let cluster = cluster();
    let store = store(&cluster, "one");
    let stored = suite::create(&*store, suite::record("a", "web", 1)).await;
    let patch = json!({"status": {"phase": "Fine"}});
    let api: Api<ImageCache> = Api::namespaced(cluster.admin(), "a");
    api.patch_status("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert!(matches!(store.list(None).await, Err(StoreError::Corrupt { .. })));
    assert!(matches!(store.get(stored.record.id).await, Err(StoreError::Corrupt { .. })));
    assert_eq!(store.list(Some("b".parse().unwrap())).await.unwrap(), []);
}

/// Objects that other programs create and delete.
#[tokio::test]
async fn objects_by_others() {
    let cluster = cluster();
    let store = store(&cluster, "one");
    let api: Api<ImageCache> = Api::namespaced(cluster.admin(), "a");
    let mut object = convert::object(&suite::record("a", "web", 1), "here");
    object.metadata.finalizers = None;
    object.spec.cluster.clear();
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    assert_eq!(store.list(None).await.unwrap(), [], "not adopted yet");
    store.adopt("a", "web", ROOM, at(5)).await.unwrap();
    store.adopt("a", "web", ROOM, at(6)).await.unwrap();
    let [stored] = &store.list(None).await.unwrap()[..] else { panic!("not one") };
    assert_eq!(stored.record.ordered_by, RequestOrigin::Cluster);
    assert_eq!(Some(stored.record.id.to_string()), made.uid());
    assert_eq!(api.get("web").await.unwrap().finalizers(), [FINALIZER]);
    api.delete("web", &DeleteParams::default()).await.unwrap();
    let going = store.get(stored.record.id).await.unwrap().unwrap();
    assert_eq!(going.record.status, Status::Deleting);
    store.remove(stored.record.id, going.version).await.unwrap();
    assert!(api.get_opt("web").await.unwrap().is_none());
}

/// A user who can write objects can neither forge the response to a key of the API nor prevent other objects
/// from being read.
#[tokio::test]
async fn a_forged_key() {
    let cluster = cluster();
    let store = store(&cluster, "one");
    let api: Api<ImageCache> = Api::namespaced(cluster.admin(), "a");
    let order = suite::record("a", "web", 1);
    let key = suite::key("k", 1).unwrap();
    let mut forged = convert::object(&order, "here");
    forged.spec.images = vec!["Not An Image".into()];
    forged.annotations_mut().insert(KEY.to_owned(), keys::hash(&order.tenant, &key.key));
    forged.annotations_mut().insert(REQUEST.to_owned(), hex(&key.request));
    api.create(&PostParams::default(), &forged).await.unwrap();
    for _ in 0..2 {
        let made = (*store).create(order.clone(), OPEN, Some(key.clone())).await;
        assert!(matches!(made, Err(StoreError::KeyReused)), "{made:?}");
        assert_eq!(store.list(None).await.unwrap(), []);
        // The leader refuses the object.
        store.adopt("a", "web", ROOM, at(5)).await.unwrap();
    }
    let object = api.get("web").await.unwrap();
    assert_eq!(object.status.unwrap().phase, "Failed");
}
