//! Sharing and isolation between the tenants of one daemon, and the life cycle of a cache.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer, push_index};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::registry::{self, PASSWORD};
use crate::harness::served::random;
use crate::harness::{Need, isolated, larder, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
const LIMIT: Duration = Duration::from_secs(120);

fn layer(seed: u64) -> Layer {
    Layer::from(LayerBuilder::new().file(format!("f{seed}"), random(seed, 1 << 20)).gzip())
}

fn image(seeds: &[u64]) -> Image {
    Image::builder(Format::Oci).layers(seeds.iter().map(|seed| layer(*seed))).build()
}

fn details(daemon: &Daemon, tenant: Tenant, id: &str) -> Value {
    daemon.ask(tenant, "GET", &format!("/larder/v1/caches/{id}"), None).expect(200)["details"].clone()
}

/// Waits until `ready` returns true.
fn until(daemon: &Daemon, what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}\n{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
}

#[case]
fn layers_are_reused_only_within_a_tenant() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(&[1, 2]);
        image.push(&mut registry, "team/app", "1").unwrap();
        let blobs: u64 = image.layers.iter().map(|layer| layer.blob.len() as u64).sum();
        let images = [format!("{}/team/app:1", registry.host())];
        let daemon = Daemon::start(&[A, B], ROOMY);
        let served = || -> u64 { image.layers.iter().map(|layer| registry.served(&layer.digest)).sum() };

        let first = daemon.order(A, "first", &images);
        daemon.settle(A, &first, "Available", LIMIT);
        assert_eq!(served(), blobs);
        let second = daemon.order(A, "second", &images);
        daemon.settle(A, &second, "Available", LIMIT);
        assert_eq!(served(), blobs, "must not be fetched again");
        let layers = details(&daemon, A, &second)["layers"].clone();
        for layer in layers.as_array().unwrap() {
            assert_eq!((&layer["origin"], &layer["from"]), (&json!("reused"), &json!(first)), "{layer}");
        }
        let digests = [&first, &second].map(|id| details(&daemon, A, id)["digest"].clone());
        assert_eq!(digests[0], digests[1], "the reused layers must equal the fetched ones");

        let third = daemon.order(B, "first", &images);
        daemon.settle(B, &third, "Available", LIMIT);
        assert_eq!(served(), 2 * blobs, "another tenant must fetch for itself");

        // The source can be deleted, and the cache that reused its layers stays intact.
        daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{first}"), None).expect(202);
        let gone = || daemon.ask(A, "GET", &format!("/v5/imagecaches/{first}"), None).0.status == 404;
        until(&daemon, "the first cache is deleted", gone);
        let volume = daemon.state().join("tenants/team-a/volumes").join(format!("{second}.1"));
        succeed(larder().arg("verify").arg(volume));
    });
}

#[case]
fn a_workload_is_matched_by_tag_and_by_digest() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(&[1]);
        let index = push_index(&mut registry, Format::Oci, &[&image], "team/app", "1").unwrap();
        let name = format!("{}/team/app", registry.host());
        let daemon = Daemon::start(&[A, B], ROOMY);
        let id = daemon.order(A, "web", &[format!("{name}:1")]);
        daemon.settle(A, &id, "Available", LIMIT);
        let of = |tenant: Tenant, image: &str| {
            let path = format!("/larder/v1/match?image={}", image.replace('@', "%40"));
            daemon.ask(tenant, "GET", &path, None).expect(200)["match"]["image_cache"]["id"].clone()
        };
        let digests = [&index.digest, &image.manifest.digest];
        for image in
            [format!("{name}:1"), format!("{name}@{}", digests[0]), format!("{name}:2@{}", digests[1])]
        {
            assert_eq!(of(A, &image), json!(id), "{image}");
            assert_eq!(of(B, &image), Value::Null, "{image}");
        }
        for other in [format!("{name}:2"), format!("{name}@{}", image.layers[0].digest)] {
            assert_eq!(of(A, &other), Value::Null, "{other}");
        }
    });
}

#[case]
fn unusable_pull_secrets_give_the_same_message() {
    isolated(&[Need::Program("docker-registry"), Need::Program("htpasswd")], || {
        let registry = registry::Registry::with_password();
        let images = [registry.push(&image(&[1]), "team/private", "1")];
        let daemon = Daemon::start(&[A, B], &format!("{ROOMY}log.level = 'trace'"));
        for tenant in [A, B] {
            let dir = daemon.secrets().join(tenant.0).join("registry");
            fs::create_dir_all(&dir).unwrap();
            fs::copy(registry.docker_config().join("config.json"), dir.join(".dockerconfigjson")).unwrap();
        }
        let order = |name: &str, secret: &str| {
            let order = json!({
                "name": name, "images": images,
                "building_config": {"cluster": "here", "image_pull_secrets": [secret]},
            });
            let answer = daemon.ask(A, "POST", "/v5/imagecaches", Some(&order)).expect(201);
            answer["image_cache"]["id"].as_str().unwrap().to_owned()
        };
        let mut told = Vec::new();
        let config = json!({"cluster": "here", "image_pull_secrets": ["team-a:registry", "no secret"]});
        let malformed = json!({"name": "malformed", "images": images, "building_config": config});
        for path in ["/v5/imagecaches", "/larder/v1/plan"] {
            let refused = daemon.ask(A, "POST", path, Some(&malformed)).expect(400);
            let message = refused["errorMessage"].as_str().unwrap();
            assert!(message.starts_with("building_config.image_pull_secrets[1]: "), "{message}");
        }
        for (name, secret) in [("unknown", "team-a:nothing"), ("forbidden", "team-b:registry")] {
            let failed = daemon.settle(A, &order(name, secret), "Failed", LIMIT);
            let message = failed["message"].as_str().unwrap();
            assert!(message.contains(secret) && message.contains(&images[0]), "{message}");
            told.push(message.replace(secret, "SECRET"));
        }
        assert!(told.iter().all(|message| *message == told[0]), "{told:?}");

        let good = order("good", "team-a:registry");
        daemon.settle(A, &good, "Available", LIMIT);
        // Layers on the host give no access: a tenant who cannot read the manifest gets none of them.
        for (tenant, name) in [(A, "without"), (B, "without")] {
            let id = daemon.order(tenant, name, &images);
            let failed = daemon.settle(tenant, &id, "Failed", LIMIT);
            assert!(failed["message"].as_str().unwrap().contains(&images[0]), "{failed}");
        }
        let log = daemon.log();
        for secret in [PASSWORD.to_owned(), A.token(), registry::basic()] {
            assert!(!log.contains(&secret), "a secret is in the log");
        }
        assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log must contain all levels");
    });
}

#[case]
fn a_pull_secret_that_the_service_manager_loads() {
    isolated(&[Need::Program("docker-registry"), Need::Program("htpasswd")], || {
        let registry = registry::Registry::with_password();
        let images = [registry.push(&image(&[1]), "team/private", "1")];
        let credentials = tempfile::tempdir().unwrap();
        let secret = credentials.path().join("pull-secret.team-a.registry");
        fs::copy(registry.docker_config().join("config.json"), secret).unwrap();
        let starter = ["env".to_owned(), format!("CREDENTIALS_DIRECTORY={}", credentials.path().display())];
        let daemon = Daemon::start_by(&starter, &[A, B], ROOMY);
        for (tenant, status) in [(A, "Available"), (B, "Failed")] {
            let order = json!({
                "name": "web", "images": images,
                "building_config": {"cluster": "here", "image_pull_secrets": ["team-a:registry"]},
            });
            let answer = daemon.ask(tenant, "POST", "/v5/imagecaches", Some(&order)).expect(201);
            daemon.settle(tenant, answer["image_cache"]["id"].as_str().unwrap(), status, LIMIT);
        }
    });
}

#[case]
fn caches_that_are_built_at_once_fetch_once() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(&[1, 2, 3]);
        image.push(&mut registry, "team/app", "1").unwrap();
        let images = [format!("{}/team/app:1", registry.host())];
        let daemon = Daemon::start(&[A], &format!("{ROOMY}caches.max_concurrent_builds = 6\n"));
        let ids: Vec<_> = (0..6).map(|number| daemon.order(A, &format!("web-{number}"), &images)).collect();
        for id in &ids {
            daemon.settle(A, id, "Available", LIMIT);
        }
        for layer in &image.layers {
            assert_eq!(registry.served(&layer.digest), layer.blob.len() as u64, "must be fetched once");
        }
        let digest = |id| details(&daemon, A, id)["digest"].clone();
        assert!(ids.iter().all(|id| digest(id) == digest(&ids[0])));
    });
}

#[case]
fn a_stopped_build_resumes_at_the_next_start() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(&[1, 2]);
        image.push(&mut registry, "team/app", "1").unwrap();
        let [quick, slow] = [&image.layers[0], &image.layers[1]];
        let half = slow.blob.len() as u64 / 2;
        registry.fault(Fault::StallAt { digest: slow.digest.clone(), offsets: vec![half] });
        let mut daemon = Daemon::start(&[A], ROOMY);
        let id = daemon.order(A, "web", &[format!("{}/team/app:1", registry.host())]);
        until(&daemon, "the first layer is committed, the second stalls", || {
            let layers = details(&daemon, A, &id)["layers"].clone();
            layers.as_array().unwrap().iter().any(|layer| layer["state"] == "committed")
        });
        let asked = Instant::now();
        daemon.stop();
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        registry.heal();
        daemon.restart();
        daemon.settle(A, &id, "Available", LIMIT);
        assert_eq!(
            registry.served(&quick.digest),
            quick.blob.len() as u64,
            "a committed layer was fetched again"
        );
        assert!(fs::read_dir(daemon.state().join("work")).unwrap().next().is_none());
        let volume = daemon.state().join("tenants/team-a/volumes").join(format!("{id}.1"));
        succeed(larder().arg("verify").arg(volume));
    });
}

#[case]
fn a_refresh_fetches_what_changed_and_keeps_the_id() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let (before, after) = (image(&[1, 2]), image(&[1, 3]));
        before.push(&mut registry, "team/app", "1").unwrap();
        let daemon = Daemon::start(&[A], ROOMY);
        let reference = format!("{}/team/app:1", registry.host());
        let id = daemon.order(A, "web", std::slice::from_ref(&reference));
        daemon.settle(A, &id, "Available", LIMIT);
        after.push(&mut registry, "team/app", "1").unwrap();
        registry.forget();
        let path = format!("/larder/v1/caches/{id}/refresh");
        let answer = daemon.ask(A, "POST", &path, None).expect(202);
        assert_eq!(
            (&answer["image_cache"]["status"], &answer["image_cache"]["id"]),
            (&json!("Available"), &json!(id))
        );
        until(&daemon, "the refresh ends", || details(&daemon, A, &id)["refreshing"] == false);
        assert_eq!(registry.served(&before.layers[0].digest), 0, "an unchanged layer must not be fetched");
        assert_eq!(registry.served(&after.layers[1].digest), after.layers[1].blob.len() as u64);
        let now = details(&daemon, A, &id);
        assert_eq!(now["images"][0]["manifest"], json!(after.manifest.digest.to_string()), "{now}");
        let volumes = || -> Vec<_> {
            let entries = fs::read_dir(daemon.state().join("tenants/team-a/volumes")).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        until(&daemon, "the old volume is deleted", || volumes() == [format!("{id}.2")]);

        // A failed refresh keeps the existing volume.
        registry.fault(Fault::Status {
            path: "/manifests/".into(),
            status: 404,
            times: 99,
            retry_after: None,
        });
        daemon.ask(A, "POST", &path, None).expect(202);
        until(&daemon, "the refresh fails", || details(&daemon, A, &id)["refreshing"] == false);
        let cache =
            daemon.ask(A, "GET", &format!("/v5/imagecaches/{id}"), None).expect(200)["image_cache"].clone();
        assert_eq!(cache["status"], "Available");
        assert!(cache["message"].as_str().unwrap().contains(&reference), "{cache}");
        assert_eq!(details(&daemon, A, &id)["digest"], now["digest"]);
    });
}

#[case]
fn capacity_and_rate_limits() {
    isolated(&[], || {
        let registry = Registry::spawn();
        let images = [format!("{}/team/app:1", registry.host())];
        registry.fault(Fault::Status { path: "/v2/".into(), status: 503, times: 999, retry_after: None });
        let more = "caches.capacity = '39GiB'\napi.requests_per_second = 3\n";
        let daemon = Daemon::start(&[A, B], more);
        daemon.order(A, "first", &images);
        let order = json!({"name": "second", "images": images, "building_config": {"cluster": "here"}});
        let full = daemon.ask(A, "POST", "/v5/imagecaches", Some(&order));
        let said = full.expect(507)["errorMessage"].as_str().unwrap().to_owned();
        assert!(said.contains("20 GiB") && said.contains("19 GiB"), "{said}");

        let slow_down = (0..20).map(|_| daemon.ask(A, "GET", "/v5/imagecaches", None));
        let refused = slow_down.into_iter().find(|answer| answer.0.status == 429).unwrap();
        assert!(refused.0.header("Retry-After").is_some());
        assert_eq!(refused.expect(429)["errorCode"], "CCE.01429001");
        daemon.ask(B, "GET", "/v5/imagecaches", None).expect(200);
    });
}

#[case]
fn an_order_of_a_tenant_does_not_reach_the_host() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        image(&[1]).push(&mut registry, "team/app", "1").unwrap();
        let port = registry.host().split_once(':').unwrap().1.to_owned();
        let [reference, named, hidden] =
            [registry.host(), format!("localhost:{port}"), format!("2130706433:{port}")]
                .map(|host| format!("{host}/team/app:1"));
        let daemon = Daemon::start(&[A, B], &format!("{ROOMY}registry.allow = []\n"));
        for (name, image) in [("address", &reference), ("name", &named), ("hidden", &hidden)] {
            let failed =
                daemon.settle(A, &daemon.order(A, name, std::slice::from_ref(image)), "Failed", LIMIT);
            let message = failed["message"].as_str().unwrap();
            assert!(message.contains("orders of tenants cannot reach"), "{message}");
        }
        let plan = json!({"name": "plan", "images": [reference], "building_config": {"cluster": "here"}});
        let planned = daemon.ask(A, "POST", "/larder/v1/plan", Some(&plan));
        assert!((400..500).contains(&planned.0.status), "{}", String::from_utf8_lossy(&planned.0.body));
        assert!(registry.seen().is_empty(), "{:?}", registry.seen());

        // The administrator can reach it. A tenant can as soon as the configuration allows it.
        let mut admin = larder();
        let socket = format!("unix://{}", daemon.config().with_file_name("larder.sock").display());
        admin.env("LARDER_HOST", socket).args(["cache", "create", "of-admin", &reference, "--wait"]);
        daemon.explain(|| succeed(&mut admin));
        let config = fs::read_to_string(daemon.config()).unwrap();
        let allowed =
            config.replace("registry.allow = []", &format!("registry.allow = ['{}']", registry.host()));
        fs::write(daemon.config(), allowed).unwrap();
        daemon.signal(Signal::SIGHUP);
        until(&daemon, "the configuration is read again", || {
            daemon.log().contains("the configuration was read again")
        });
        let id = daemon.order(A, "allowed", std::slice::from_ref(&reference));
        daemon.settle(A, &id, "Available", LIMIT);
    });
}

#[case]
fn a_slow_registry_does_not_block_all_builders() {
    isolated(&[], || {
        let (mut slow, mut fast) = (Registry::spawn(), Registry::spawn());
        let image = image(&[1]);
        for registry in [&mut slow, &mut fast] {
            image.push(registry, "team/app", "1").unwrap();
        }
        let digest = image.layers[0].digest.clone();
        slow.fault(Fault::Dribble { digest: digest.clone(), bytes: 100, every: Duration::from_millis(500) });
        let daemon = Daemon::start(&[A, B], &format!("{ROOMY}caches.max_concurrent_builds = 2\n"));
        for name in ["one", "two"] {
            daemon.order(A, name, &[format!("{}/team/app:1", slow.host())]);
        }
        until(&daemon, "a layer arrives slowly", || slow.served(&digest) > 0);
        let id = daemon.order(B, "web", &[format!("{}/team/app:1", fast.host())]);
        daemon.settle(B, &id, "Available", LIMIT);
        assert!(slow.served(&digest) < image.layers[0].blob.len() as u64, "the slow build ended too early");
    });
}
