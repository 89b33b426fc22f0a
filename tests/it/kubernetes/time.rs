//! Expiry, and objects without an owner.

use std::sync::Arc;
use std::time::Duration;

use larder::caches::volumes::VolumeId;
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::names::{Names, object};
use larder_fake_kubernetes::{Effect, Fault};
use larder_model::image_cache::{CacheId, Status};
use larder_sys::clock::Clock as _;
use larder_sys::clock::fake::FakeClock;
use serde_json::{Value, json};

use crate::harness::cluster::World;

const DAY: Duration = Duration::from_secs(86_400);

#[case]
fn an_expired_cache_goes_with_its_copies() {
    let Some(mut world) = World::faked() else { return };
    let clock = Arc::new(FakeClock::default());
    // Builders use the clock of this machine.
    clock.set_forward((chrono::Utc::now() - clock.now()).to_std().unwrap());
    world.clock = clock.clone();
    let daemon = world.daemon();
    let mut spec = world.spec("web");
    spec.retention_days = 1;
    let record = daemon.wait(daemon.service.create(&world.tenant(), spec, None)).unwrap();
    world.phase("web", Status::Available);
    clock.pass(DAY + Duration::from_secs(1));
    daemon.service.reload(&world.config);
    let object = world.until("it has expired", || {
        let object: ImageCache = world.get(&world.team, "web")?;
        (object.status.as_ref()?.phase == "Unavailable").then_some(object)
    });
    assert!(object.status.unwrap().message.unwrap().contains("expired"));
    clock.pass(Duration::from_secs(3700));
    daemon.service.reload(&world.config);
    world.until("its object is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
    // The copy is deleted before its owner, so the storage never deletes a snapshot that is still offered.
    let seen = world.fake().seen();
    let at = |namespace: &str| {
        let name = format!("ic-{}", record.id);
        let mut deletions = seen.iter().enumerate().filter(|(_, seen)| {
            (seen.verb, seen.resource.as_str(), seen.name.as_str()) == ("delete", "volumesnapshots", &name)
        });
        deletions.find(|(_, seen)| seen.namespace == namespace).unwrap().0
    };
    assert!(at(&world.team) < at(world.own()));
}

/// A new leader does not give up a cache whose snapshot is not ready for a while.
#[case]
fn a_snapshot_is_ready_again_after_a_change_of_leaders() {
    const GROUP: &str = "snapshot.storage.k8s.io";
    let Some(mut world) = World::faked() else { return };
    let clock = Arc::new(FakeClock::default());
    clock.set_forward((chrono::Utc::now() - clock.now()).to_std().unwrap());
    world.clock = clock.clone();
    let daemon = world.daemon();
    daemon.create(&world, "web");
    world.phase("web", Status::Available);
    daemon.stop().unwrap();
    let fake = world.fake();
    let [snapshot] = &fake.peek_all(GROUP, "volumesnapshots", world.own())[..] else { panic!("not one") };
    let contents = fake.peek_all(GROUP, "volumesnapshotcontents", "");
    let is_own = |content: &&Value| content["spec"]["volumeSnapshotRef"]["namespace"] == world.own();
    let content = contents.iter().find(is_own).unwrap();
    // The controller cannot bind the snapshot, and therefore does not report that it is ready.
    let mut unbound = content.clone();
    unbound["spec"]["volumeSnapshotRef"]["uid"] = json!(CacheId::random().to_string());
    fake.restore(GROUP, "volumesnapshotcontents", unbound);
    let mut pending = snapshot.clone();
    pending["status"]["readyToUse"] = json!(false);
    fake.restore(GROUP, "volumesnapshots", pending);

    let daemon = world.daemon();
    let status = || world.get::<ImageCache>(&world.team, "web")?.status;
    let missing =
        world.until("its snapshot is missing", || status().filter(|status| status.phase == "Unavailable"));
    assert!(missing.message.unwrap().contains("is missing"));
    fake.restore(GROUP, "volumesnapshotcontents", content.clone());
    fake.restore(GROUP, "volumesnapshots", snapshot.clone());
    clock.pass(Duration::from_secs(61));
    daemon.service.reload(&world.config);
    let present = world.until("it is served again", || status().filter(|status| status.phase == "Available"));
    assert_eq!((present.message, present.class), (None, None));
    daemon.stop().unwrap();
}

#[case]
fn orphans_are_swept() {
    let Some(world) = World::faked() else { return };
    let names = Names { namespace: world.own().to_owned() };
    let stray = VolumeId { tenant: world.tenant(), id: CacheId::random(), generation: 3 };
    let install = |mut object: Value, labels: bool| {
        object["metadata"]["namespace"] = json!(world.own());
        if labels {
            object["metadata"]["labels"] = serde_json::to_value(names.labels(&stray)).unwrap();
        }
        world.fake().install(&object)
    };
    let claim = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "csi", "resources": {"requests": {"storage": "1Gi"}}},
        })
    };
    let snapshot = |name: &str| {
        json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
            "spec": {"volumeSnapshotClassName": "csi", "source": {"persistentVolumeClaimName": name}},
        })
    };
    let name = object(&stray);
    install(claim(&name), true);
    install(snapshot(&name), true);
    // Objects without Larder's label are not touched.
    install(claim("theirs"), false);
    install(snapshot("theirs"), false);
    let _daemon = world.daemon();
    let there =
        |group: &str, plural: &str, name: &str| world.fake().peek(group, plural, world.own(), name).is_some();
    world.until("the orphans are deleted", || {
        let claim = there("", "persistentvolumeclaims", &name);
        let snapshot = there("snapshot.storage.k8s.io", "volumesnapshots", &name);
        (!claim && !snapshot).then_some(())
    });
    assert!(there("", "persistentvolumeclaims", "theirs"));
    assert!(there("snapshot.storage.k8s.io", "volumesnapshots", "theirs"));
}

#[case]
fn nothing_is_swept_on_half_a_list() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    daemon.create(&world, "web");
    world.phase("web", Status::Available);
    assert_eq!(daemon.stop(), Ok(()));
    // If the records cannot be read, the objects that they name are not treated as orphans.
    let forbidden = Fault::once("list", "imagecaches", Effect::Forbidden).times(u32::MAX);
    world.fake().fault(forbidden);
    let client = {
        let _in = world.runtime.enter();
        world.fake().admin()
    };
    let second = world.daemon_of(client);
    assert!(second.ends().is_err(), "it became the leader without records");
    assert_eq!(world.fake().stored_snapshots(), 1);
    world.fake().heal();
    let third = world.daemon();
    world.until("it is the leader", || third.service.leads().then_some(()));
    assert_eq!(world.fake().stored_snapshots(), 1);
    world.phase("web", Status::Available);
}
