//! Checks that Larder uses all rights that `config/kubernetes` grants, and needs no others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DeleteParams, Patch, PatchParams};
use larder::caches::store::IdempotencyKey;
use larder::kubernetes::crd::ImageCache;
use larder_model::image_cache::Status;
use larder_sys::clock::Clock as _;
use larder_sys::clock::fake::FakeClock;
use serde_json::{Value, json};

use crate::harness::cluster::{LARDER, World, shipped};

/// A right: a place, a resource, and a verb. The place is the cluster (empty), Larder's namespace or a
/// tenant's.
type Right = (&'static str, String, String);

/// Rights for a case that no test can cause: a Secret with outdated content, left by a daemon that ended
/// between two requests.
const UNSEEN: &[(&str, &str, &str)] = &[("larder", "secrets", "delete")];

/// Returns the rights that the roles of Larder grant.
fn given() -> BTreeSet<Right> {
    let mut given = BTreeSet::new();
    for (file, place) in [("rbac.yaml", "larder"), ("tenant.yaml", "tenant")] {
        for object in shipped(file) {
            let place = match object["kind"].as_str().unwrap() {
                "ClusterRole" => "",
                // That role is for the tenant's users.
                "Role" if object["metadata"]["name"] != "larder-user" => place,
                _ => continue,
            };
            let words = |rule: &Value, key: &str| -> Vec<String> {
                serde_json::from_value(rule[key].clone()).unwrap()
            };
            for rule in object["rules"].as_array().unwrap() {
                for resource in words(rule, "resources") {
                    given
                        .extend(words(rule, "verbs").into_iter().map(|verb| (place, resource.clone(), verb)));
                }
            }
        }
    }
    given
}

#[case]
fn every_right_is_used_and_none_is_missing() {
    let mut world = World::new();
    if world.is_real() {
        return;
    }
    let clock = Arc::new(FakeClock::default());
    clock.set_forward((chrono::Utc::now() - clock.now()).to_std().unwrap());
    world.clock = clock.clone();
    world.tuning.builds.pending = Duration::from_secs(10);
    world.fake().install(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry", "namespace": "team-a"},
        "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "{\"auths\":{}}"},
    }));
    let daemon = world.daemon();
    // An order over HTTP, sent twice and then refreshed; and an order by kubectl, which is shared and then no
    // longer shared.
    let key = Some(IdempotencyKey { key: "k".into(), request: [1; 32] });
    let order =
        || daemon.wait(daemon.service.create(&world.tenant(), world.spec("api"), key.clone())).unwrap();
    let made = order();
    assert_eq!(order().id, made.id);
    let mut object = world.object("web");
    object.spec.image_pull_secrets = vec!["team-a:registry".into()];
    object.spec.share = vec![world.other.clone()];
    world.accept(&world.other, &world.team);
    world.apply(&object);
    for name in ["api", "web"] {
        world.phase(name, Status::Available);
    }
    daemon.wait(daemon.service.refresh(&world.tenant(), made.id)).unwrap();
    world.until("it is refreshed", || {
        let status = world.get::<ImageCache>(&world.team, "api")?.status?;
        (status.content?.generation == 2).then_some(())
    });
    let objects = world.api::<ImageCache>(&world.team);
    let unshared = Patch::Merge(json!({"spec": {"share": []}}));
    world.wait(objects.patch("web", &PatchParams::default(), &unshared)).unwrap();
    // The pod of this one cannot be created, and only an event has the reason.
    world.fake().install(&json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight", "namespace": "larder"},
        "spec": {"hard": {"pods": "0"}},
    }));
    world.apply(&world.object("stuck"));
    let stuck = world.phase("stuck", Status::Failed).status.unwrap().message.unwrap();
    assert!(stuck.contains("exceeded quota"), "{stuck}");
    // All caches are deleted: by the API, by kubectl, and by expiry.
    let gone = |name: &str| {
        world.until("it is gone", || world.get::<ImageCache>(&world.team, name).is_none().then_some(()));
    };
    daemon.wait(daemon.service.delete(&world.tenant(), made.id)).unwrap();
    world.wait(objects.delete("web", &DeleteParams::default())).unwrap();
    gone("api");
    gone("web");
    clock.pass(Duration::from_secs(2 * 86_400));
    daemon.service.reload(&world.config);
    gone("stuck");
    world.nothing_left();
    world.until("the idempotency key is deleted", || {
        let seen = world.fake().seen();
        seen.iter().any(|seen| (seen.verb, seen.resource.as_str()) == ("delete", "configmaps")).then_some(())
    });
    daemon.stop().unwrap();

    let given = given();
    // A right in the cluster applies to each namespace.
    let in_cluster = |resource: &str, verb: &str| given.contains(&("", resource.to_owned(), verb.to_owned()));
    let mut used = BTreeSet::new();
    for seen in world.fake().seen().into_iter().filter(|seen| seen.user == LARDER) {
        let place = match seen.namespace.as_str() {
            _ if in_cluster(&seen.resource, seen.verb) => "",
            "" => "",
            "larder" => "larder",
            _ => "tenant",
        };
        // Server-side apply creates a missing object (apiserver, pkg/endpoints/handlers/patch.go).
        if seen.verb == "patch" && !seen.resource.contains('/') {
            used.insert((place, seen.resource.clone(), "create".to_owned()));
        }
        used.insert((place, seen.resource, seen.verb.to_owned()));
    }
    let unseen =
        UNSEEN.iter().map(|(place, resource, verb)| (*place, (*resource).to_owned(), (*verb).to_owned()));
    let unseen: BTreeSet<Right> = unseen.collect();
    let unused: Vec<_> = given.difference(&used).filter(|right| !unseen.contains(*right)).collect();
    assert!(unused.is_empty(), "unused rights: {unused:#?}");
    let missing: Vec<_> = used.difference(&given).collect();
    assert!(missing.is_empty(), "missing rights: {missing:#?}");
}
