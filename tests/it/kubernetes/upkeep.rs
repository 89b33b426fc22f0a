//! Upkeep of image caches: schedules, replaced volumes, last uses, creation on a miss and deletion of
//! the least recently used.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use larder::kubernetes::crd::{ImageCache, ImageCacheStatus, RefreshState};
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder_fake_kubernetes::{DRIVER, Seen};
use larder_model::image_cache::Status;
use larder_sys::clock::Clock as _;
use larder_sys::clock::fake::FakeClock;
use larder_testing::image::{Format as ImageFormat, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::Fault;
use serde_json::{Value, json};

use crate::harness::cluster::{LARDER, Running, World, shipped};

const DAY: Duration = Duration::from_secs(86_400);

/// Returns a world and a clock that the test moves. It starts with the time of this machine, which builders
/// use.
fn clocked() -> Option<(World, Arc<FakeClock>)> {
    let mut world = World::faked()?;
    let clock = Arc::new(FakeClock::default());
    clock.set_forward((chrono::Utc::now() - clock.now()).to_std().unwrap());
    world.clock = clock.clone();
    Some((world, clock))
}

fn scheduled(world: &World, name: &str, refresh: Value) -> ImageCache {
    let mut object = world.object(name);
    object.spec.refresh = Some(serde_json::from_value(refresh).unwrap());
    object
}

fn status(world: &World, name: &str) -> Option<ImageCacheStatus> {
    world.get::<ImageCache>(&world.team, name)?.status
}

/// Waits until the schedule of an image cache has this result, and the volume with this number is served.
fn settled(world: &World, name: &str, result: Option<&str>, generation: u32) -> RefreshState {
    world.until(&format!("{name} is {result:?} with volume {generation}"), || {
        let status = status(world, name)?;
        let state = status.refresh?;
        let is_so = state.last_result.as_deref() == result
            && status.content?.generation == generation
            && status.work.is_none();
        is_so.then_some(state)
    })
}

fn patch(world: &World, name: &str, spec: Value) -> Result<ImageCache, kube::Error> {
    let api = world.api::<ImageCache>(&world.team);
    world.wait(api.patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": spec}))))
}

#[case]
fn schedules_refresh_what_has_moved_or_always() {
    let Some((mut world, clock)) = clocked() else { return };
    let daemon = world.daemon();
    world.apply(&scheduled(&world, "moved", json!({"schedule": "0 3 * * *"})));
    let always = json!({"schedule": "0 3 * * *", "timeZone": "Asia/Tokyo", "when": "Always"});
    world.apply(&scheduled(&world, "always", always));
    let first = settled(&world, "always", None, 1).next_time.unwrap();
    settled(&world, "moved", None, 1);
    // A day later one is built again, and the tags of the other are compared.
    clock.pass(DAY);
    let state = settled(&world, "always", Some("Refreshed"), 2);
    assert!(state.next_time.unwrap() > first && state.last_time.unwrap() >= first);
    settled(&world, "moved", Some("Unchanged"), 1);
    // A daemon that was stopped for days catches up once, and finds the tag that moved.
    assert_eq!(daemon.stop(), Ok(()));
    let layer = Layer::from(LayerBuilder::new().file("new", b"new").gzip());
    let image = Image::builder(ImageFormat::Oci).layers([layer]).build();
    image.push(&mut world.served.registry, "app-0", "1").unwrap();
    clock.pass(DAY * 4);
    let _daemon = world.daemon();
    settled(&world, "moved", Some("Refreshed"), 2);
    settled(&world, "always", Some("Refreshed"), 3);
    // If a registry refuses, the refresh fails, and the image cache is still served.
    let (path, status_code) = ("/manifests/".to_owned(), 403);
    world.served.registry.fault(Fault::Status { path, status: status_code, times: 100, retry_after: None });
    clock.pass(DAY);
    let state = settled(&world, "moved", Some("Failed"), 2);
    assert!(state.message.unwrap().contains("app-0"), "the message must name the image");
    assert_eq!(status(&world, "moved").unwrap().phase, "Available");
}

#[case]
fn a_schedule_that_cannot_be_used_says_so() {
    let Some(world) = World::faked() else { return };
    let _daemon = world.daemon();
    // Errors that the schema covers are refused at once.
    let api = world.api::<ImageCache>(&world.team);
    for (refresh, field) in [
        (json!({"schedule": "each day"}), "spec.refresh.schedule"),
        (json!({"schedule": "0 3 * * *", "timeZone": "Europe/ Berlin"}), "spec.refresh.timeZone"),
        (json!({"schedule": "0 3 * * *", "when": "Sometimes"}), "spec.refresh.when"),
    ] {
        let mut object = serde_json::to_value(world.object("wrong")).unwrap();
        object["spec"]["refresh"] = refresh;
        let wrong: kube::core::DynamicObject = serde_json::from_value(object).unwrap();
        let kind = kube::core::ApiResource::erase::<ImageCache>(&());
        let dynamic = kube::Api::namespaced_with(world.admin(), &world.team, &kind);
        let error = world.wait(dynamic.create(&PostParams::default(), &wrong)).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
    // An order with an error that the schema does not cover fails with a message.
    world.apply(&scheduled(&world, "wrong", json!({"schedule": "99 3 * * *"})));
    let message = world.phase("wrong", Status::Failed).status.unwrap().message.unwrap();
    assert_eq!(message, "spec.refresh.schedule: value must be in range 0..=59; found 99");
    world.wait(api.delete("wrong", &DeleteParams::default())).unwrap();
    // An available image cache stays available.
    world.apply(&world.object("web"));
    world.phase("web", Status::Available);
    patch(&world, "web", json!({"refresh": {"schedule": "0 3 * * *", "timeZone": "Mars/Olympus"}})).unwrap();
    let state = settled(&world, "web", Some("Invalid"), 1);
    assert_eq!(state.message.unwrap(), "spec.refresh.timeZone: there is no time zone \"Mars/Olympus\"");
    world.until("an event reports it", || {
        let events = world.fake().peek_all("events.k8s.io", "events", &world.team);
        events.into_iter().find(|event| event["reason"] == "InvalidSchedule")
    });
    patch(&world, "web", json!({"refresh": {"timeZone": "UTC"}})).unwrap();
    world.until("the status shows the next time", || status(&world, "web")?.refresh?.next_time);
    patch(&world, "web", json!({"refresh": null})).unwrap();
    world.until("the schedule is gone", || status(&world, "web")?.refresh.is_none().then_some(()));
    assert_eq!(status(&world, "web").unwrap().phase, "Available");
}

/// Creates a claim of the team that is restored from a copy.
fn restore(world: &World, name: &str, class: &str, snapshot: &str) {
    let claim = json!({
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot},
            "resources": {"requests": {"storage": "20Gi"}},
        },
    });
    let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
    world.wait(world.api(&world.team).create(&PostParams::default(), &claim)).unwrap();
}

/// Waits until a claim is bound.
fn bound(world: &World, name: &str) {
    world.until(&format!("the claim {name} is bound"), || {
        let claim: PersistentVolumeClaim = world.get(&world.team, name)?;
        (claim.status?.phase? == "Bound").then_some(())
    });
}

/// Returns the copies of the team that are ready and not being deleted, after the daemon has removed unneeded
/// ones.
fn copies(world: &World, daemon: &Running) -> Vec<String> {
    daemon.service.reload(&world.config);
    std::thread::sleep(Duration::from_secs(1));
    let all = world.wait(world.api::<VolumeSnapshot>(&world.team).list(&Default::default())).unwrap().items;
    let stays = all.into_iter().filter(|one| one.is_ready() && one.metadata.deletion_timestamp.is_none());
    stays.map(|one| one.name_any()).collect()
}

#[case]
fn a_replaced_volume_stays_while_a_claim_uses_it() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    let made = daemon.create(&world, "web");
    world.phase("web", Status::Available);
    let first = format!("ic-{}", made.id);
    let second = format!("{first}-2");
    world.until("its copy is ready", || {
        world.get::<VolumeSnapshot>(&world.team, &first)?.is_ready().then_some(())
    });
    assert_eq!(status(&world, "web").unwrap().last_used, None);
    world.fake().install(&json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "later"},
        "provisioner": DRIVER, "volumeBindingMode": "WaitForFirstConsumer",
    }));
    restore(&world, "now", "csi", &first);
    bound(&world, "now");
    // This claim is restored when a pod needs it, after the refresh.
    restore(&world, "later", "later", &first);
    daemon.wait(daemon.service.refresh(&world.tenant(), made.id)).unwrap();
    world.until("the second volume is offered", || {
        world.get::<VolumeSnapshot>(&world.team, &second)?.is_ready().then_some(())
    });
    assert_eq!(copies(&world, &daemon), [first.clone(), second.clone()]);
    assert_eq!(world.fake().stored_snapshots(), 2);
    // Claims count as uses.
    world.until("the status shows the last use", || status(&world, "web")?.last_used);
    let pod = json!({
        "metadata": {"name": "app"},
        "spec": {
            "containers": [{
                "name": "app", "image": "larder:1", "args": ["node", "hold"],
                "volumeMounts": [{"name": "images", "mountPath": "/images"}],
            }],
            "volumes": [{"name": "images", "persistentVolumeClaim": {"claimName": "later"}}],
        },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    world.wait(world.api::<Pod>(&world.team).create(&PostParams::default(), &pod)).unwrap();
    bound(&world, "later");
    // One claim is enough.
    let claims = world.api::<PersistentVolumeClaim>(&world.team);
    world.wait(claims.delete("now", &DeleteParams::default())).unwrap();
    assert_eq!(copies(&world, &daemon).len(), 2);
    let at_once = DeleteParams::default().grace_period(0);
    world.wait(world.api::<Pod>(&world.team).delete("app", &at_once)).unwrap();
    world.wait(claims.delete("later", &DeleteParams::default())).unwrap();
    world.until("the unused first volume is deleted", || {
        (copies(&world, &daemon) == [second.clone()] && world.fake().stored_snapshots() == 1).then_some(())
    });
    assert_eq!(world.fake().torn_snapshots(), 0, "an owner was deleted before its copies");
}

#[case]
fn a_replaced_volume_in_use_goes_with_its_image_cache_and_beyond_a_number() {
    let Some(world) = World::faked() else { return };
    let daemon = world.daemon();
    let made = daemon.create(&world, "web");
    world.phase("web", Status::Available);
    let name = |generation: u32| match generation {
        1 => format!("ic-{}", made.id),
        more => format!("ic-{}-{more}", made.id),
    };
    for generation in 1..=4 {
        world.until(&format!("volume {generation} is offered"), || {
            world.get::<VolumeSnapshot>(&world.team, &name(generation))?.is_ready().then_some(())
        });
        restore(&world, &format!("of-{generation}"), "csi", &name(generation));
        bound(&world, &format!("of-{generation}"));
        if generation < 4 {
            daemon.wait(daemon.service.refresh(&world.tenant(), made.id)).unwrap();
        }
    }
    // Two replaced volumes are kept. Of three the oldest is deleted, although a claim was restored from it.
    world.until("three volumes are left", || {
        (copies(&world, &daemon) == [name(2), name(3), name(4)]).then_some(())
    });
    daemon.wait(daemon.service.delete(&world.tenant(), made.id)).unwrap();
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.until("nothing is stored", || (world.fake().stored_snapshots() == 0).then_some(()));
}

/// Creates a pod of a namespace that waits for this image.
fn waiting(world: &World, namespace: &str, name: &str, image: &str) {
    let pod = json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "app", "image": image}], "imagePullSecrets": [{"name": "registry"}]},
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    world.wait(world.api::<Pod>(namespace).create(&PostParams::default(), &pod)).unwrap();
}

/// Returns the image caches of the team that were created on a miss, with their first image.
fn created(world: &World) -> Vec<ImageCache> {
    let all = world.wait(world.api::<ImageCache>(&world.team).list(&Default::default())).unwrap().items;
    all.into_iter()
        .filter(|one| one.labels().get("larder.dev/created-by").is_some_and(|by| by == "miss"))
        .collect()
}

#[case]
fn what_pods_miss_is_created_and_the_least_recently_used_makes_room() {
    let Some((mut world, clock)) = clocked() else { return };
    (world.config.upkeep.create_on_miss, world.config.upkeep.miss_pods) = (true, 2);
    world.config.caches.max_per_tenant = 2;
    for object in shipped("tenant-miss.yaml") {
        world.fake().install(&object);
    }
    let host = world.served.registry.host();
    for number in 1..=2 {
        let layer = Layer::from(LayerBuilder::new().file("number", vec![number]).gzip());
        let image = Image::builder(ImageFormat::Oci).layers([layer]).build();
        image.push(&mut world.served.registry, &format!("app-{number}"), "1").unwrap();
    }
    let image = |number: u32| format!("{host}/app-{number}:1");
    let namespaces: kube::Api<k8s_openapi::api::core::v1::Namespace> = kube::Api::all(world.admin());
    let annotation = json!({"metadata": {"annotations": {"larder.dev/create-on-miss": "true"}}});
    world.wait(namespaces.patch(&world.team, &PatchParams::default(), &Patch::Merge(annotation))).unwrap();
    let daemon = world.daemon();
    world.apply(&world.object("web"));
    world.phase("web", Status::Available);
    // Two pods need each of a cached image, an uncached one, and one that does not exist. One pod needs
    // another. The pods of a namespace that does not take part are not read.
    for number in 0..2 {
        waiting(&world, &world.team, &format!("cached-{number}"), &image(0));
        waiting(&world, &world.team, &format!("missed-{number}"), &image(1));
        waiting(&world, &world.team, &format!("absent-{number}"), &image(7));
        waiting(&world, &world.other, &format!("other-{number}"), &image(2));
    }
    waiting(&world, &world.team, "once", &image(2));
    let made = world.until("one is created", || created(&world).pop());
    let name = made.name_any();
    assert_eq!((&made.spec.images, made.spec.image_cache_size), (&vec![image(1)], 20));
    assert_eq!(made.spec.image_pull_secrets, [format!("{}:registry", world.team)]);
    world.phase(&name, Status::Available);
    // The quota is used up. A cache that was just created is not deleted, and an order of a person never is.
    waiting(&world, &world.team, "twice", &image(2));
    world.until("its image was resolved", || {
        (world.served.registry.requests("/app-2/manifests/") > 0).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(created(&world).len(), 1);
    clock.pass(DAY * 2);
    // The misses of two days ago no longer count.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(created(&world)[0].name_any(), name);
    for number in 0..2 {
        waiting(&world, &world.team, &format!("later-{number}"), &image(2));
    }
    let next = world.until("the least recently used cache is deleted", || {
        // The daemon checks again after half a minute.
        clock.pass(Duration::from_secs(5));
        daemon.service.reload(&world.config);
        created(&world).into_iter().find(|one| one.spec.images == [image(2)])
    });
    world.phase(&next.name_any(), Status::Available);
    assert_eq!(created(&world).len(), 1);
    assert_eq!(status(&world, "web").unwrap().phase, "Available");
    let events = world.fake().peek_all("events.k8s.io", "events", &world.team);
    let evicted: Vec<_> = events.iter().filter(|event| event["reason"] == "Evicted").collect();
    assert_eq!(evicted.len(), 1);
    assert_eq!(evicted[0]["regarding"]["name"], name.as_str());
    // The daemon read pods in no other namespace.
    let seen = world.fake().seen();
    let pods = seen.iter().filter(|seen| seen.user == LARDER && seen.resource == "pods");
    let places: std::collections::BTreeSet<_> = pods.map(|seen| seen.namespace.clone()).collect();
    assert!(!places.contains(&world.other) && !places.contains(""), "{places:?}");
    // Each right of `config/kubernetes/tenant-miss.yaml` is used.
    for verb in ["list", "watch"] {
        let is_it = |seen: &&Seen| (seen.verb, seen.resource.as_str()) == (verb, "pods");
        assert!(seen.iter().filter(is_it).any(|seen| seen.namespace == world.team), "{verb} pods");
    }
}
