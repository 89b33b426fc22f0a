//! `larder serve` of a cluster: the real process, over HTTP, with the token of a ServiceAccount in a file.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kube::ResourceExt as _;
use larder::kubernetes::crd::ImageCache;
use larder_model::image_cache::Status;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::cluster::{LARDER, TIMEOUT, World};
use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::python::pytest;
use crate::harness::registry::Registry;
use crate::harness::{Need, isolated};

const TEAM: Tenant = Tenant("team-a");

/// Returns the configuration of a daemon, and the path of its token.
fn configured(world: &World) -> (String, PathBuf) {
    let (token, kubeconfig) = (world.served.beside("token"), world.served.beside("kubeconfig"));
    fs::write(&token, world.fake().token(LARDER)).unwrap();
    fs::write(&kubeconfig, world.fake().kubeconfig(&token, "larder")).unwrap();
    let more = format!(
        "{ROOMY}[[cluster]]\nuid = 'here'\nrunner = 'kubernetes'\nkubeconfig = '{}'\nbuilder_image = 'larder:1'\n\
         storage_class = 'csi'\nsnapshot_class = 'csi'\n",
        kubeconfig.display()
    );
    (more, token)
}

#[case]
fn from_http_to_a_snapshot() {
    let Some(world) = World::faked() else { return };
    let (more, _) = configured(&world);
    let mut one = Daemon::start(&[TEAM], &more);
    let two = Daemon::start(&[TEAM], &more);
    let id = two.order(TEAM, "web", &world.images());
    let cache = one.explain(|| two.explain(|| one.settle(TEAM, &id, "Available", TIMEOUT)));
    assert_eq!(
        (cache["name"].as_str(), cache["building_config"]["cluster"].as_str()),
        (Some("web"), Some("here"))
    );
    let object: ImageCache = world.get("team-a", "web").unwrap();
    assert_eq!(object.uid().unwrap(), id);

    let details = two.ask(TEAM, "GET", &format!("/larder/v1/caches/{id}"), None).expect(200);
    assert_eq!(details["details"]["layers"].as_array().unwrap().len(), 2);
    let snapshots = one.ask(TEAM, "GET", &format!("/larder/v1/caches/{id}/snapshots"), None).expect(200);
    let snapshot = &snapshots["snapshots"][0];
    assert_eq!(
        (snapshot["kind"].as_str(), snapshot["served"].as_bool()),
        (Some("volume_snapshot"), Some(true))
    );
    let image = &world.images()[0];
    let found = two.ask(TEAM, "GET", &format!("/larder/v1/match?image={image}"), None).expect(200);
    assert_eq!(
        found["match"]["image_cache"]["id"].as_str().or(found["image_cache"]["id"].as_str()),
        Some(id.as_str()),
        "{found}"
    );
    let order = json!({"name": "plan", "images": [image], "building_config": {"cluster": "here"}});
    let plan = two.ask(TEAM, "POST", "/larder/v1/plan", Some(&order)).expect(200);
    assert_eq!(plan["plan"]["images"].as_array().unwrap().len(), 1, "{plan}");

    // One daemon refreshes, and the other sees it. The old snapshot is deleted.
    two.ask(TEAM, "POST", &format!("/larder/v1/caches/{id}/refresh"), None).expect(202);
    world.until("the new snapshot is served", || {
        let status = world.get::<ImageCache>("team-a", "web")?.status?;
        (status.content?.generation == 2).then_some(())
    });
    world.until("the old snapshot is gone", || (world.fake().stored_snapshots() == 1).then_some(()));

    // Whichever daemon was the leader, the other continues when the killed one's lease expires.
    one.kill();
    let id = two.order(TEAM, "later", &world.images());
    two.explain(|| two.settle(TEAM, &id, "Available", TIMEOUT));
    for name in ["web", "later"] {
        let id = world.get::<ImageCache>("team-a", name).unwrap().uid().unwrap();
        two.ask(TEAM, "DELETE", &format!("/v5/imagecaches/{id}"), None).expect(202);
    }
    two.explain(|| world.nothing_left());
    world.until("the objects are gone", || {
        world.fake().peek_all("larder.dev", "imagecaches", "").is_empty().then_some(())
    });
}

#[case]
fn a_token_is_renewed() {
    let Some(world) = World::faked() else { return };
    let (more, token) = configured(&world);
    let daemon = Daemon::start(&[TEAM], &more);
    let id = daemon.order(TEAM, "web", &world.images());
    daemon.explain(|| daemon.settle(TEAM, &id, "Available", TIMEOUT));
    // Both tokens are valid for a while, as in a cluster, because the client reads the file once a minute.
    let (old, new) = (fs::read_to_string(&token).unwrap(), world.fake().token(LARDER));
    fs::write(&token, &new).unwrap();
    daemon.explain(|| {
        world.until_within(Duration::from_secs(240), "the daemon sends the new token", || {
            world.fake().was_used(&new).then_some(())
        });
    });
    world.fake().revoke(&old);
    let id = daemon.order(TEAM, "later", &world.images());
    daemon.explain(|| daemon.settle(TEAM, &id, "Available", TIMEOUT));
    world.phase("later", Status::Available);
}

#[case]
fn missing_rights_are_reported() {
    let Some(world) = World::faked() else { return };
    let (more, _) = configured(&world);
    let daemon = Daemon::start(&[TEAM, Tenant("nowhere")], &more);
    // A tenant without a namespace has no place for records.
    let order = json!({"name": "web", "images": ["a:1"], "building_config": {"cluster": "here"}});
    let answer: Value = daemon.ask(Tenant("nowhere"), "POST", "/v5/imagecaches", Some(&order)).expect(403);
    assert!(answer["errorMessage"].as_str().unwrap().contains("namespace nowhere"), "{answer}");
    let listed = daemon.ask(Tenant("nowhere"), "GET", "/v5/imagecaches", None).expect(200);
    assert_eq!(listed["image_caches"].as_array().unwrap().len(), 0);
    let other = json!({"name": "web", "images": ["a:1"], "building_config": {"cluster": "other"}});
    daemon.ask(TEAM, "POST", "/v5/imagecaches", Some(&other)).expect(400);
}

#[case]
fn the_vendors_sdk() {
    const NEEDS: &[Need] =
        &[Need::Program("docker-registry"), Need::Program("htpasswd"), Need::Program("curl"), Need::Python];
    isolated(NEEDS, || {
        let Some(world) = World::faked() else { return };
        let small = || {
            let layer = Layer::from(LayerBuilder::new().file("etc/motd", "small").gzip());
            Image::builder(Format::Oci).layer(layer).build()
        };
        let registry = Registry::open();
        let image = registry.push(&small(), "team/small", "1");
        let private = Registry::with_password();
        let secret_image = private.push(&small(), "team/private", "1");
        // Both tenants have a secret with this name, and each can use its own.
        let config = fs::read(private.docker_config().join("config.json")).unwrap();
        for namespace in ["team-a", "team-b"] {
            world.fake().install(&json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
                "metadata": {"name": "registry", "namespace": namespace},
                "data": {".dockerconfigjson": BASE64_STANDARD.encode(&config)},
            }));
        }
        let (more, _) = configured(&world);
        let daemon = Daemon::start(&[TEAM, Tenant("team-b")], &more);
        let stage = json!({
            "endpoint": daemon.endpoint(), "cluster": "here", "image": image, "registry": registry.host(),
            "tenants": [TEAM.credentials(), Tenant("team-b").credentials()], "private": secret_image,
        });
        let files =
            ["test_calls.py", "test_inputs.py", "test_signature.py", "test_tenants.py", "test_http.py"];
        daemon.explain(|| pytest("sdk", &files, &stage, Duration::from_secs(600)));
    });
}
