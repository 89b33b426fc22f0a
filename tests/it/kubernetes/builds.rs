//! From an order to a snapshot, and its deletion.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::snapshot::{VolumeSnapshot, VolumeSnapshotContent};
use larder_fake_kubernetes::{Effect, RequestMatcher, Timing};
use larder_model::image_cache::Status;
use larder_model::job::LayerFormat;
use larder_model::key::SigningKey;
use larder_model::seal::CacheManifest;
use larder_model::trust::Trust;
use larder_testing::registry::Fault;
use serde_json::json;

use crate::harness::cluster::{World, image, snapshot_name};

#[case]
fn ordered_by_the_api() {
    let world = World::new();
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    assert_eq!(record.status, Status::Creating);
    let object = world.phase("web", Status::Available);
    let status = object.status.clone().unwrap();
    let content = status.content.unwrap();
    let snapshot = content.snapshot.unwrap();
    assert_eq!(
        (snapshot.namespace.as_str(), snapshot.name.as_str()),
        (world.own(), snapshot_name(&object).as_str())
    );
    assert_eq!((status.images.len(), content.layers.len(), content.totals.layers), (1, 2, 2));
    assert_eq!((status.images[0].layers, status.images[0].layers_done), (2, 2));
    let conditions: Vec<_> = status.conditions.iter().map(|one| (&*one.type_, &*one.status)).collect();
    assert_eq!(conditions, [("Ready", "True"), ("Progressing", "False"), ("Degraded", "False")]);

    // The copy in the tenant's namespace has the same handle.
    let copy = world.until("the copy is ready", || {
        world.get::<VolumeSnapshot>(&world.team, &snapshot.name).filter(VolumeSnapshot::is_ready)
    });
    assert!(copy.spec.source.volume_snapshot_content_name.is_some());
    let object = world.until("the status lists the copy", || {
        let object: ImageCache = world.get(&world.team, "web")?;
        object.status.as_ref()?.copies.iter().any(|copy| copy.ready).then_some(object)
    });
    assert_eq!(object.status.unwrap().copies[0].namespace, world.team);

    // The build objects are gone.
    world.until("the job is gone", || world.get::<Job>(world.own(), &snapshot.name).is_none().then_some(()));
    if !world.is_real() {
        // The snapshot is the sealed volume, taken after the volume was detached.
        let stored = world.fake().stored(&snapshot.handle).unwrap();
        let seal = CacheManifest::parse(&fs::read(stored.path.join("cache.json")).unwrap()).unwrap();
        assert_eq!(seal.digest.to_string(), content.digest);
        assert!(!stored.attached);
    }
    let seen = daemon.record(&world, &record);
    assert_eq!(seen.content.unwrap().images.len(), 1);

    daemon.wait(daemon.service.delete(&world.tenant(), record.id)).unwrap();
    world.until("the record is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
    assert_eq!(daemon.stop(), Ok(()));
}

/// A build of EROFS images needs no capability.
#[case]
fn images_are_built_under_restricted() {
    let mut world = World::new();
    world.config.build.layer_format = LayerFormat::Erofs;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    let namespaces: Api<Namespace> = Api::all(world.admin());
    world.wait(namespaces.patch(world.own(), &PatchParams::default(), &Patch::Merge(&labels))).unwrap();
    let daemon = world.daemon();
    daemon.create(&world, "web");
    let content = world.phase("web", Status::Available).status.unwrap().content.unwrap();
    assert_eq!(content.totals.layers, 2);
    if !world.is_real() {
        let stored = world.fake().stored(&content.snapshot.unwrap().handle).unwrap();
        let seal = CacheManifest::parse(&fs::read(stored.path.join("cache.json")).unwrap()).unwrap();
        assert_eq!(seal.content.layer_format, LayerFormat::Erofs);
    }
}

/// The signing key is the operator's Secret. The pod mounts it, and Larder does not read it.
#[case]
fn a_pod_signs_with_the_key_of_a_secret() {
    let mut world = World::new();
    world.config.cluster[0].sign_secret = "sign".to_owned();
    let (key, pem) = SigningKey::generate().unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sign", "namespace": world.own()},
        "data": {"key.pem": BASE64_STANDARD.encode(pem.expose())},
    });
    let secrets = world.api::<Secret>(world.own());
    let secret = serde_json::from_value(secret).unwrap();
    world.wait(secrets.create(&PostParams::default(), &secret)).unwrap();
    let daemon = world.daemon();
    daemon.create(&world, "web");
    let content = world.phase("web", Status::Available).status.unwrap().content.unwrap();
    if !world.is_real() {
        let stored = world.fake().stored(&content.snapshot.unwrap().handle).unwrap();
        let cache_json = fs::read(stored.path.join("cache.json")).unwrap();
        let trust = Trust::only(vec![key.public()]);
        assert_eq!(
            larder::volume::signature::check(&trust, &stored.path, &cache_json).unwrap(),
            Some(key.public().id())
        );
    }
}

/// The progress of a build is in the API and in the object's status.
#[case]
fn progress_is_reported_per_image() {
    let Some(mut world) = World::faked() else { return };
    world.config.registry.stall_timeout_seconds = 5;
    let slow = world.served.images[0].layers[1].digest.clone();
    // Half of one layer arrives, then nothing until the builder reaches its stall timeout.
    world.served.registry.fault(Fault::StallAt { digest: slow, offsets: vec![25_000, 25_001, 25_002] });
    let daemon = world.daemon();
    let record = daemon.create(&world, "web");
    let image = world.until("the status shows the progress", || {
        let status = world.get::<ImageCache>(&world.team, "web")?.status?;
        assert_ne!(status.phase, "Failed", "{:?}", status.message);
        status.images.into_iter().find(|image| image.layers_done == 1)
    });
    assert_eq!((image.reference.as_str(), image.layers), (world.images()[0].as_str(), 2));
    assert!(image.received > 0 && image.received < image.compressed_size, "{image:?}");
    let other = world.daemon();
    let seen = other.record(&world, &record);
    assert_eq!((seen.progress.len(), seen.progress[0].layers_done), (1, 1));
    world.phase("web", Status::Available);
}

/// The log of a pod is only for users: the result of a build is in its termination message.
#[case]
fn a_log_that_is_lost() {
    let Some(world) = World::faked() else { return };
    let lost = Effect::Broken;
    let meets = RequestMatcher { resource: "pods/log", ..RequestMatcher::default() };
    world.fake().fault(larder_fake_kubernetes::Fault { meets, harm: lost, after: 0, times: u32::MAX });
    let daemon = world.daemon();
    daemon.create(&world, "web");
    let content = world.phase("web", Status::Available).status.unwrap().content.unwrap();
    assert_eq!((content.images.len(), content.totals.layers), (1, 2));
}

/// A disk that is still attached would have a journal to replay.
#[case]
fn a_snapshot_is_taken_of_a_disk_that_is_detached() {
    let timing = Timing { detach: Duration::from_secs(2), ..Timing::default() };
    let Some(world) = World::faked_with(image(), timing) else { return };
    let daemon = world.daemon();
    daemon.create(&world, "web");
    let content = world.phase("web", Status::Available).status.unwrap().content.unwrap();
    assert!(!world.fake().stored(&content.snapshot.unwrap().handle).unwrap().attached);
}

/// A copy must not outlive the snapshot in the storage.
#[case]
fn an_owner_waits_for_its_copies() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    daemon.create(&world, "web");
    let object = world.phase("web", Status::Available);
    let (name, uid) = (snapshot_name(&object), object.uid().unwrap());
    world.until("the copy is ready", || {
        world.get::<VolumeSnapshot>(&world.team, &name).filter(VolumeSnapshot::is_ready)
    });
    // A finalizer keeps the content of the copy.
    let contents: Api<VolumeSnapshotContent> = Api::all(world.admin());
    let content = format!("ic-{uid}.1.{}", world.team);
    let hold = |finalizers: &[&str]| {
        let present = world.wait(contents.get(&content)).unwrap();
        let others = present.finalizers().iter().map(String::as_str).filter(|one| *one != "test/hold");
        let all: Vec<&str> = others.chain(finalizers.iter().copied()).collect();
        let patch = json!({"metadata": {"finalizers": all}});
        world.wait(contents.patch(&content, &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    };
    hold(&["test/hold"]);
    let api = world.api::<ImageCache>(&world.team);
    world.wait(api.delete("web", &DeleteParams::default())).unwrap();
    world.until("the deletion is retried several times", || {
        let tries = world.fake().seen().into_iter();
        let tries = tries.filter(|seen| seen.verb == "delete" && seen.resource == "volumesnapshotcontents");
        (tries.filter(|seen| seen.name == content).count() >= 3).then_some(())
    });
    let owner: VolumeSnapshot = world.get(world.own(), &name).unwrap();
    assert!(owner.metadata.deletion_timestamp.is_none() && owner.is_ready());
    hold(&[]);
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}
