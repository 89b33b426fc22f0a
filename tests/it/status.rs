//! `larder ls`, `larder cache ls` and `larder attach --list`, as root and as a tenant.

use std::path::Path;
use std::process::Command;

use larder_testing::image::{Format, Image};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use serde_json::Value;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::node::Node;
use crate::harness::{exits, isolated, larder, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns `larder` with the state directory of a daemon, as a client of its socket.
fn operator(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = larder();
    let socket = daemon.config().with_file_name("larder.sock");
    command.env("LARDER_STATE__DIR", daemon.state()).args(arguments);
    command.env("LARDER_HOST", format!("unix://{}", socket.display()));
    command
}

/// Returns `larder` as a client of a daemon with the token of a tenant.
fn tenant(daemon: &Daemon, tenant: Tenant, arguments: &[&str]) -> Command {
    let mut command = operator(daemon, arguments);
    command.env("LARDER_HOST", daemon.endpoint()).env("LARDER_TOKEN", tenant.token());
    command
}

/// Checks that docs/reference/json.md names every field of a document, at any depth.
fn documented(document: &Value) {
    const PAGE: &str = include_str!("../../docs/reference/json.md");
    // Fields of objects whose schema is elsewhere: the vendor's image cache.
    const VENDOR: [&str; 9] = [
        "name",
        "id",
        "created_at",
        "images",
        "image_cache_size",
        "retention_days",
        "building_config",
        "status",
        "cluster",
    ];
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                let named = PAGE.contains(&format!("`{name}`")) || PAGE.contains(&format!("].{name}`"));
                assert!(named || VENDOR.contains(&name.as_str()), "{name} is not documented: {document}");
                documented(value);
            }
        }
        Value::Array(items) => items.iter().for_each(documented),
        _ => {}
    }
}

#[case]
fn root_sees_all_tenants_and_a_tenant_its_own() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let layer = LayerBuilder::new().file("etc/motd", "hello").gzip().into();
        let image = Image::builder(Format::Oci).layer(layer).build();
        image.push(&mut registry, "team/app", "1").unwrap();
        let images = [format!("{}/team/app:1", registry.host())];
        let (daemon, node) = (Daemon::start(&[A, B], ROOMY), Node::new());
        let limit = std::time::Duration::from_secs(60);
        for (tenant, name) in [(A, "web"), (B, "other")] {
            let id = daemon.order(tenant, name, &images);
            daemon.settle(tenant, &id, "Available", limit);
        }

        let own = succeed(&mut tenant(&daemon, A, &["ls"]));
        assert!(own.contains("web") && !own.contains("other") && !own.contains("Space"), "{own}");
        for path in ["/larder/v1/host", "/larder/v1/caches?tenants=all"] {
            daemon.ask(A, "GET", path, None).expect(403);
        }
        let all = succeed(&mut operator(&daemon, &["ls"]));
        assert!(all.starts_with("Space: 40 GiB reserved of 20 TiB, "), "{all}");
        assert!(all.contains("Builds: 0 running, 0 queued."), "{all}");
        assert!(all.contains("team-a  web") && all.contains("team-b  other"), "{all}");
        assert_eq!(succeed(&mut operator(&daemon, &["status", "-o", "name"])), "web\nother\n");

        let at = node.place("icv");
        let volume = daemon.ask(A, "GET", "/larder/v1/caches", None).expect(200);
        let id = volume["image_caches"][0]["id"].as_str().unwrap();
        let volume = daemon.state().join(format!("tenants/team-a/volumes/{id}.1"));
        let attach = |command: &str, source: &Path| {
            let mut larder = node.larder(command, source);
            larder.env("LARDER_STATE__DIR", daemon.state());
            larder
        };
        let mut attaching = attach("attach", &volume);
        let printed = json(&succeed(attaching.arg("--at").arg(&at).args(["--no-unit", "--json"])));
        documented(&printed);
        assert_eq!(printed["at"], at.to_str().unwrap());
        assert_eq!(printed["volume"], volume.to_str().unwrap());

        let listed = json(&succeed(&mut operator(&daemon, &["ls", "--json"])));
        documented(&listed);
        for command in [&["verify", "--json"][..], &["prefetch", "--json"]] {
            documented(&json(&succeed(operator(&daemon, command).arg(&volume))));
        }
        assert_eq!(listed["host"]["host"]["reserved_bytes"], 40u64 << 30, "{listed}");
        assert_eq!(listed["attached"][0]["at"], at.to_str().unwrap(), "{listed}");
        let place = &listed["image_caches"][0]["overview"]["attached"][0];
        assert_eq!(
            (&place["generation"], &place["at"]),
            (&1.into(), &at.to_str().unwrap().into()),
            "{listed}"
        );
        let own = json(&succeed(&mut tenant(&daemon, A, &["cache", "ls", "-o", "json"])));
        let place = &own["image_caches"][0]["overview"]["attached"][0];
        assert!(
            place["generation"] == 1 && place["at"].is_null(),
            "a tenant sees no path of the host: {own}"
        );
        let shown = succeed(&mut tenant(&daemon, A, &["cache", "show", "web"]));
        assert!(shown.contains("reserved    20 GiB") && shown.contains("attached    yes"), "{shown}");

        let list = succeed(&mut operator(&daemon, &["attach", "--list"]));
        assert!(list.starts_with("ATTACHED AT") && list.contains(volume.to_str().unwrap()), "{list}");
        let detached = json(&succeed(attach("detach", &at).arg("--json")));
        documented(&detached);
        assert_eq!(detached["at"], at.to_str().unwrap());
        assert_eq!(
            json(&succeed(&mut operator(&daemon, &["attach", "--list", "--json"])))["attached"],
            json("[]")
        );
    });
}

#[case]
fn a_build_shows_its_attempt_and_its_last_error() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let layer = LayerBuilder::new().file("etc/motd", "hello").gzip().into();
        let image = Image::builder(Format::Oci).layer(layer).build();
        image.push(&mut registry, "team/app", "1").unwrap();
        let busy = Fault::Status { path: "/manifests/".into(), status: 503, times: 1000, retry_after: None };
        registry.fault(busy);
        let images = [format!("{}/team/app:1", registry.host()), format!("{}/team/app:2", registry.host())];
        let daemon = Daemon::start(&[A], &format!("{ROOMY}caches.build_retry_pause_seconds = 1\n"));
        daemon.order(A, "web", &images);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let listed = loop {
            let listed = succeed(&mut tenant(&daemon, A, &["cache", "ls"]));
            if listed.contains("attempt 2: ") {
                break listed;
            }
            assert!(std::time::Instant::now() < deadline, "{listed}");
        };
        assert!(listed.contains("Creating") && listed.contains("/team/app:1 +1"), "{listed}");
        let shown = succeed(&mut tenant(&daemon, A, &["cache", "show", "web"]));
        assert!(shown.contains("last_error") && shown.contains("503"), "{shown}");
        for image in &images {
            assert!(shown.contains(image), "an ordered image is missing: {shown}");
        }
    });
}

#[case]
fn without_a_daemon_the_attached_volumes_are_listed() {
    isolated(&[], || {
        let dir = tempfile::tempdir().unwrap();
        let list = |host: Option<&str>| {
            let mut command = larder();
            command.env("LARDER_STATE__DIR", dir.path()).env_remove("LARDER_HOST").arg("ls");
            command.args(host.iter().flat_map(|host| ["--host", *host]));
            command
        };
        let absent = format!("unix://{}", dir.path().join("larder.sock").display());
        let said = exits(69, &mut list(Some(&absent)));
        assert!(said.contains("no daemon answers"), "{said}");
        // Another daemon of this machine can listen on the default socket.
        succeed(Command::new("mount").args(["-t", "tmpfs", "none", "/run"]));
        let output = list(None).output().unwrap();
        let note = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && note == "note: no daemon is running on this host\n", "{note}");
        assert!(output.stdout.is_empty());
    });
}
