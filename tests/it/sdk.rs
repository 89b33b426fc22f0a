//! The daemon from the view of its tenants: the vendor's SDK from PyPI, plain HTTP, and a fuzzer of its
//! OpenAPI document.

use std::fs;
use std::path::Path;
use std::time::Duration;

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use serde_json::{Value, json};

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::python::{program, pytest, succeed_within};
use crate::harness::registry::{Registry, one_registry_for_all};
use crate::harness::{Need, isolated};

const NEEDS: &[Need] =
    &[Need::Program("docker-registry"), Need::Program("htpasswd"), Need::Program("curl"), Need::Python];
const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
const CLUSTER: &str = "7b8f5e0c-1111-4a4a-9c9c-0123456789ab";
const LIMIT: Duration = Duration::from_secs(600);

fn small() -> Image {
    let layer = Layer::from(LayerBuilder::new().file("etc/motd", "small").gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

/// Returns a configuration with one cluster, and `more` settings.
fn one_cluster(more: &str) -> String {
    format!("{ROOMY}{more}\n[[cluster]]\nuid = '{CLUSTER}'\n")
}

/// Returns the parameters of the tests in Python.
fn stage(daemon: &Daemon, registry: &Registry, image: &str) -> Value {
    json!({
        "endpoint": daemon.endpoint(), "cluster": CLUSTER, "image": image, "registry": registry.host(),
        "tenants": [A.credentials(), B.credentials()],
    })
}

#[case]
fn the_vendors_sdk() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&small(), "team/small", "1");
        let private = Registry::with_password();
        let secret_image = private.push(&small(), "team/private", "1");
        let daemon = Daemon::start(&[A, B], &one_cluster(""));
        // Both tenants have a secret with this name, and each can use its own.
        for tenant in [A, B] {
            let dir = daemon.secrets().join(tenant.0).join("registry");
            fs::create_dir_all(&dir).unwrap();
            fs::copy(private.docker_config().join("config.json"), dir.join(".dockerconfigjson")).unwrap();
        }
        let mut stage = stage(&daemon, &registry, &image);
        stage["private"] = secret_image.into();
        let files =
            ["test_calls.py", "test_inputs.py", "test_signature.py", "test_tenants.py", "test_http.py"];
        daemon.explain(|| pytest("sdk", &files, &stage, LIMIT));
    });
}

#[case]
fn a_quota_holds() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&small(), "team/small", "1");
        let daemon = Daemon::start(&[A, B], &one_cluster("caches.max_per_tenant = 3"));
        let mut stage = stage(&daemon, &registry, &image);
        stage["quota"] = 3.into();
        daemon.explain(|| pytest("sdk", &["test_quota.py"], &stage, LIMIT));
    });
}

#[case]
fn fifty_image_caches_at_once() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&small(), "team/small", "1");
        let daemon = Daemon::start(&[A, B], &one_cluster(""));
        let mut stage = stage(&daemon, &registry, &image);
        stage["pid"] = daemon.pid().into();
        stage["limit"] = 300.into();
        let printed = daemon.explain(|| pytest("sdk", &["test_load.py"], &stage, LIMIT));
        for line in printed.lines().filter(|line| line.contains(" in s: ") || line.contains(" in MiB: ")) {
            eprintln!("{line}");
        }
    });
}

#[case]
fn a_fuzzer_causes_no_internal_error() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&small(), "team/small", "1");
        let dir = tempfile::tempdir().unwrap();
        // No reference of the fuzzer leaves this machine.
        let certs_d = one_registry_for_all(dir.path(), &registry.host());
        let more =
            "caches.build_retries = 0\ncaches.failed_retention_hours = 0\ncaches.max_per_tenant = 1000\n";
        let daemon = Daemon::start(&[A], &format!("{ROOMY}{more}log.level = 'debug'\n{certs_d}"));
        let caches: Vec<_> =
            (0..8).map(|n| daemon.order(A, &format!("web-{n}"), std::slice::from_ref(&image))).collect();
        let work = tempfile::tempdir().unwrap();
        let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sdk");
        let mut fuzzer = program("schemathesis", work.path());
        fuzzer.env("PYTHONPATH", &hooks).env("SCHEMATHESIS_HOOKS", "hooks");
        fuzzer.env("LARDER_IMAGE", &image).env("LARDER_CACHES", caches.join(","));
        fuzzer.arg("--config-file").arg(hooks.join("schemathesis.toml")).arg("run");
        fuzzer.args(["--seed", "1", "--max-examples", "60", "--request-timeout", "30"]);
        fuzzer.args(["--continue-on-failure", "--generation-database", "none", "--warnings", "off"]);
        fuzzer.args(["--header", &format!("X-Auth-Token:{}", A.token())]);
        fuzzer.args(["--url", &daemon.endpoint(), &format!("{}/openapi.json", daemon.endpoint())]);
        let limit = Duration::from_secs(240);
        daemon.explain(|| {
            let printed = succeed_within(&mut fuzzer, work.path(), limit);
            eprintln!("{printed}");
            // The fuzzer passed authentication and validation: every call succeeded at least once.
            let log = daemon.log();
            assert!(!log.contains(" status=5"), "a response reported an internal error");
            let answered = |method: &str, route: &str, status: u16| {
                log.contains(&format!("method=\"{method}\" route=\"{route}\" status={status}"))
            };
            for (method, route, status) in ANSWERED {
                assert!(answered(method, route, status), "{method} {route} never returned {status}");
            }
        });
    });
}

/// Responses that the fuzzer must have received.
const ANSWERED: [(&str, &str, u16); 12] = [
    ("POST", "/v5/imagecaches", 201),
    ("GET", "/v5/imagecaches", 200),
    ("GET", "/v5/imagecaches/{id}", 200),
    ("DELETE", "/v5/imagecaches/{id}", 202),
    ("GET", "/larder/v1/caches/{id}", 200),
    ("GET", "/larder/v1/caches/{id}/events", 200),
    ("POST", "/larder/v1/caches/{id}/refresh", 202),
    ("POST", "/larder/v1/caches/{id}/cancel", 409),
    ("GET", "/larder/v1/match", 200),
    ("POST", "/larder/v1/import", 201),
    ("POST", "/larder/v1/plan", 200),
    ("POST", "/larder/v1/plan", 400),
];
