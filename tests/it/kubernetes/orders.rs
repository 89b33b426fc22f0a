//! Orders by objects, as `kubectl apply` writes them, and through several daemons at once.

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use larder::caches::record::RequestOrigin;
use larder::caches::store::IdempotencyKey;
use larder::kubernetes::crd::ImageCache;
use larder::kubernetes::snapshot::VolumeSnapshot;
use larder_model::image_cache::Status;
use serde_json::json;

use crate::harness::cluster::World;

#[case]
fn an_object_is_an_order() {
    let world = World::new();
    let daemon = world.daemon();
    let made = world.apply(&world.object("web"));
    assert!(made.status.is_none());
    let object = world.phase("web", Status::Available);
    let status = object.status.as_ref().unwrap();
    assert_eq!(status.ordered_by, "cluster");
    assert!(status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
    // The API shows it like any other.
    let listed = daemon.wait(daemon.service.list(&world.tenant(), Some("web"))).unwrap();
    assert_eq!(listed[0].id.to_string(), object.uid().unwrap());
    assert_eq!((listed[0].ordered_by, listed[0].spec.cluster.as_str()), (RequestOrigin::Cluster, "here"));

    // The retention can change, but the images cannot.
    let api = world.api::<ImageCache>(&world.team);
    let patch = |spec| {
        let patch = json!({"spec": spec});
        world.wait(api.patch("web", &PatchParams::default(), &Patch::Merge(&patch)))
    };
    for spec in [
        json!({"images": ["other:1"]}),
        json!({"imageCacheSize": 21}),
        json!({"cluster": "other"}),
        json!({"imagePullSecrets": [format!("{}:registry", world.team)]}),
    ] {
        let refused = patch(spec.clone()).unwrap_err().to_string();
        assert!(refused.contains("immutable"), "{spec}: {refused}");
    }
    let patched = patch(json!({"retentionDays": 7})).unwrap();
    world.until("the status shows the expiry", || {
        let status = world.get::<ImageCache>(&world.team, "web")?.status?;
        (status.observed_generation == patched.metadata.generation).then_some(status.expires_at?)
    });
    let record = daemon.wait(daemon.service.get(&world.tenant(), listed[0].id)).unwrap();
    assert_eq!(record.spec.retention_days, 7);

    // Deleting the object deletes the cache.
    world.wait(api.delete("web", &DeleteParams::default())).unwrap();
    world.until("the object is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}

#[case]
fn an_invalid_order_has_a_message() {
    let world = World::new();
    let _daemon = world.daemon();
    let mut object = world.object("web");
    object.spec.images = vec!["Not An Image".into()];
    world.apply(&object);
    let refused = |name: &str| {
        world.until("it is refused", || {
            let object: ImageCache = world.get(&world.team, name)?;
            let status = object.status?;
            (status.phase == "Failed").then_some(status.message.unwrap_or_default())
        })
    };
    assert!(refused("web").starts_with("spec.images[0]: "), "{}", refused("web"));
    let mut elsewhere = world.object("elsewhere");
    elsewhere.spec.cluster = "another".into();
    world.apply(&elsewhere);
    assert!(refused("elsewhere").contains("another cluster"));
    let mut twice = world.object("twice");
    twice.spec.images = vec!["nginx".into(), "docker.io/library/nginx:latest".into()];
    world.apply(&twice);
    assert_eq!(refused("twice"), "spec.images[1]: docker.io/library/nginx:latest is listed twice");
    let mut secret = world.object("secret");
    secret.spec.image_pull_secrets = vec!["registry".into()];
    world.apply(&secret);
    assert!(refused("secret").starts_with("spec.imagePullSecrets[0]: \"registry\" is not a pull secret"));
    // No other object exists for them, so they are deleted at once.
    for name in ["web", "elsewhere", "twice", "secret"] {
        world.wait(world.api::<ImageCache>(&world.team).delete(name, &DeleteParams::default())).unwrap();
        assert!(world.get::<ImageCache>(&world.team, name).is_none());
    }
}

#[case]
fn the_quota_holds_for_objects_too() {
    let mut world = World::new();
    world.config.caches.max_per_tenant = 2;
    let daemon = world.daemon();
    for name in ["a", "b", "c"] {
        world.apply(&world.object(name));
    }
    let failed = world.until("all are processed", || {
        let of = |name| world.get::<ImageCache>(&world.team, name)?.status;
        let all: Option<Vec<_>> = ["a", "b", "c"].into_iter().map(of).collect();
        let failed: Vec<_> = all?.into_iter().filter(|status| status.phase == "Failed").collect();
        (!failed.is_empty()).then_some(failed)
    });
    assert_eq!(failed.len(), 1);
    assert!(failed[0].message.as_ref().unwrap().contains("2 are allowed"), "{:?}", failed[0].message);
    assert!(daemon.wait(daemon.service.create(&world.tenant(), world.spec("d"), None)).is_err());
}

#[case]
fn the_cluster_counts_to_fifty() {
    // Without a daemon: the ResourceQuota of tenant.yaml enforces it.
    let world = World::new();
    let api = world.api::<ImageCache>(&world.team);
    let refused = (0..).find_map(|number| {
        let object = world.object(&format!("cache-{number}"));
        // A real cluster counts a quota with some delay, and refuses requests meanwhile.
        for _ in 0..20 {
            match world.wait(api.create(&Default::default(), &object)) {
                Ok(_) => return None,
                Err(kube::Error::Api(status)) if status.message.contains("exceeded quota") => {
                    return Some(number);
                }
                Err(error) => eprintln!("{error}"),
            }
        }
        panic!("the object was neither created nor refused");
    });
    assert_eq!(refused, Some(50));
    assert_eq!(world.config.caches.max_per_tenant, 50);
}

#[case]
fn orders_without_objects_are_deleted_at_once() {
    // Daemons that were killed between an object and its status, and objects that are created with Larder's
    // finalizer.
    let world = World::new();
    let api = world.api::<ImageCache>(&world.team);
    for (name, images) in [("begun", world.images()), ("wrong", vec!["Not An Image".into()])] {
        let mut object = world.object(name);
        object.spec.images = images;
        object.metadata.finalizers = Some(vec![larder::kubernetes::names::FINALIZER.to_owned()]);
        world.apply(&object);
    }
    world.wait(api.delete("begun", &DeleteParams::default())).unwrap();
    let _daemon = world.daemon();
    world.until("one is refused", || {
        world.get::<ImageCache>(&world.team, "wrong")?.status.filter(|status| status.phase == "Failed")
    });
    world.wait(api.delete("wrong", &DeleteParams::default())).unwrap();
    for name in ["begun", "wrong"] {
        world.until("it is gone", || world.get::<ImageCache>(&world.team, name).is_none().then_some(()));
    }
}

#[case]
fn any_daemon_answers_and_one_leads() {
    let world = World::new();
    let (one, two) = (world.daemon(), world.daemon());
    let leads = || [&one, &two].map(|daemon| daemon.service.leads());
    world.until("one daemon is the leader", || leads().iter().any(|leads| *leads).then_some(()));
    assert_eq!(leads().iter().filter(|leads| **leads).count(), 1);
    let (leader, other) = if one.service.leads() { (&one, &two) } else { (&two, &one) };

    // Both daemons know an idempotency key.
    let key = Some(IdempotencyKey { key: "k".into(), request: [1; 32] });
    let made = other.wait(other.service.create(&world.tenant(), world.spec("web"), key.clone())).unwrap();
    let again = leader.wait(leader.service.create(&world.tenant(), world.spec("web"), key)).unwrap();
    assert_eq!(made, again);
    world.phase("web", Status::Available);
    // Both daemons see it, and the one that did not build it reports its result.
    let seen = other.record(&world, &made);
    assert_eq!(seen.status, Status::Available);
    assert_eq!(seen.ordered_by, RequestOrigin::Api);
    let mut watch = other.wait(other.service.watch(&world.tenant(), made.id, 0)).unwrap();
    let mut told = 0;
    while other.wait(watch.next()).is_some() {
        told += 1;
    }
    assert_eq!(told, seen.events.len());
    other.wait(other.service.delete(&world.tenant(), made.id)).unwrap();
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}

#[case]
fn a_namespace_takes_its_caches_along() {
    let world = World::new();
    let _daemon = world.daemon();
    world.apply(&world.object("web"));
    world.phase("web", Status::Available);
    let namespaces: kube::Api<Namespace> = kube::Api::all(world.admin());
    world.wait(namespaces.delete(&world.team, &DeleteParams::default())).unwrap();
    // Larder's rights in the namespace and the copies are deleted with it.
    world
        .until("it is gone", || world.wait(namespaces.get_opt(&world.team)).unwrap().is_none().then_some(()));
    world.nothing_left();
}

#[case]
fn a_copy_that_was_deleted_is_made_again() {
    let world = World::new();
    let daemon = world.daemon();
    world.apply(&world.object("web"));
    let name = format!("ic-{}", world.phase("web", Status::Available).uid().unwrap());
    let ready = || {
        world.until("the copy is ready", || {
            world.get::<VolumeSnapshot>(&world.team, &name).filter(VolumeSnapshot::is_ready)
        })
    };
    let first = ready();
    assert_eq!(daemon.stop(), Ok(()));
    let copies = world.api::<VolumeSnapshot>(&world.team);
    world.wait(copies.delete(&name, &DeleteParams::default())).unwrap();
    world.until("it is gone", || world.get::<VolumeSnapshot>(&world.team, &name).is_none().then_some(()));
    // A new leader checks all copies, and repeats that regularly.
    let _daemon = world.daemon();
    assert_ne!(ready().uid(), first.uid());
    world.wait(world.api::<ImageCache>(&world.team).delete("web", &DeleteParams::default())).unwrap();
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}

#[case]
fn a_snapshot_is_shared_and_unshared() {
    let world = World::new();
    let _daemon = world.daemon();
    let mut object = world.object("web");
    object.spec.share = vec![world.other.clone()];
    world.apply(&object);
    let object = world.phase("web", Status::Available);
    let name = format!("ic-{}", object.uid().unwrap());
    let ready = |namespace: &str| {
        world.until("the copy is ready", || {
            world.get::<VolumeSnapshot>(namespace, &name).filter(VolumeSnapshot::is_ready)
        })
    };
    let refused = |namespace: &str| {
        world.until("the status shows the refusal", || {
            let status = world.get::<ImageCache>(&world.team, "web")?.status?;
            assert_eq!(status.phase, "Available");
            status.copies.into_iter().find(|copy| copy.namespace == namespace && !copy.ready)?.message
        })
    };
    let copy = |namespace: &str| world.get::<VolumeSnapshot>(namespace, &name);
    // The receiving namespace has not accepted. The tenant's own copy is created nevertheless.
    ready(&world.team);
    let message = refused(&world.other);
    assert!(message.contains("larder.dev/accept-from") && message.contains(&world.team), "{message}");
    world.accept(&world.other, "another-team");
    assert!(copy(&world.other).is_none());
    world.accept(&world.other, &format!("another-team, {}", world.team));
    ready(&world.other);
    // The receiver can revoke its consent, which takes effect with the next change of the object at the
    // latest.
    world.accept(&world.other, "another-team");
    let api = world.api::<ImageCache>(&world.team);
    let patch = |spec| {
        let patch = json!({"spec": spec});
        world.wait(api.patch("web", &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    };
    patch(json!({"retentionDays": 7}));
    world.until("the copy is deleted", || copy(&world.other).is_none().then_some(()));
    refused(&world.other);
    world.accept(&world.other, "*");
    ready(&world.other);
    let api = world.api::<ImageCache>(&world.team);
    let patch = json!({"spec": {"share": ["nowhere"]}});
    world.wait(api.patch("web", &PatchParams::default(), &Patch::Merge(&patch))).unwrap();
    world.until("the copy is deleted", || {
        world.get::<VolumeSnapshot>(&world.other, &name).is_none().then_some(())
    });
    // A copy in a namespace where Larder has no rights is not created, and the status reports it.
    world.until("the status shows the refusal", || {
        let status = world.get::<ImageCache>(&world.team, "web")?.status?;
        status.copies.iter().find(|copy| copy.namespace == "nowhere" && !copy.ready)?.message.clone()
    });
    assert!(world.get::<VolumeSnapshot>(&world.team, &name).unwrap().is_ready());
    world.wait(api.delete("web", &DeleteParams::default())).unwrap();
    world.until("it is gone", || world.get::<ImageCache>(&world.team, "web").is_none().then_some(()));
    world.nothing_left();
}
