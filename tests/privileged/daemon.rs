//! A daemon whose caches are disks.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use larder_testing::image::{Format, Image, Layer, busybox};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use serde_json::Value;

use crate::harness::daemon::{Daemon, Tenant, on_disks};
use crate::harness::podman::Podman;
use crate::harness::served::random;
use crate::harness::{Need, isolated, larder, registry as docker, succeed};
use crate::served::{TOOLS, loops, occupied, wait_for_release, with_disks};

const TEAM: Tenant = Tenant("team");
const TIMEOUT: Duration = Duration::from_secs(60);

fn image(seed: u64) -> Image {
    let shared = Layer::from(LayerBuilder::new().file("shared", random(1, 3 << 20)).gzip());
    let own = Layer::from(LayerBuilder::new().dir("d").file("d/own", random(seed, 1 << 20)).gzip());
    Image::builder(Format::Oci).layers([shared, own]).build()
}

fn disk(daemon: &Daemon, id: &str, generation: u32) -> PathBuf {
    let state = daemon.state().canonicalize().unwrap();
    state.join("tenants/team/volumes").join(format!("{id}.{generation}"))
}

fn snapshots(daemon: &Daemon, id: &str) -> Vec<Value> {
    let answer = daemon.ask(TEAM, "GET", &format!("/larder/v1/caches/{id}/snapshots"), None).expect(200);
    answer["snapshots"].as_array().unwrap().clone()
}

fn gone(daemon: &Daemon, id: &str) {
    let path = format!("/v5/imagecaches/{id}");
    daemon.ask(TEAM, "DELETE", &path, None).expect(202);
    let started = std::time::Instant::now();
    while daemon.ask(TEAM, "GET", &path, None).0.status != 404 {
        assert!(started.elapsed() < TIMEOUT, "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[case]
fn from_order_to_deletion() {
    with_disks(|| {
        let mut registry = Registry::spawn();
        image(2).push(&mut registry, "app", "1").unwrap();
        let reference = format!("{}/app:1", registry.host());
        let mut daemon = Daemon::start(&[TEAM], &on_disks());
        let id = daemon.order(TEAM, "web", std::slice::from_ref(&reference));
        daemon.settle(TEAM, &id, "Available", TIMEOUT);
        let first = disk(&daemon, &id, 1);
        let image_file = first.join("disk.img");
        assert_eq!(
            fs::metadata(&image_file).unwrap().len(),
            20 << 30,
            "the size must be exactly the requested one"
        );
        assert!(occupied(&image_file) < 1 << 30, "the disk must be sparse, as requested");
        assert!(daemon.children().is_empty());
        wait_for_release(&first);
        succeed(larder().arg("verify").arg(&first));

        // The unchanged layer is copied from the disk that is served, and the tag's new layer is fetched.
        let new = image(3);
        new.push(&mut registry, "app", "1").unwrap();
        registry.forget();
        daemon.ask(TEAM, "POST", &format!("/larder/v1/caches/{id}/refresh"), None).expect(202);
        let served = || snapshots(&daemon, &id).iter().find(|s| s["served"] == true).cloned();
        let started = std::time::Instant::now();
        while served().is_none_or(|snapshot| snapshot["generation"] != 2) {
            assert!(started.elapsed() < TIMEOUT, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(served().unwrap()["kind"], "disk");
        let seen = registry.seen();
        let fetched = |digest: &str| seen.iter().any(|request| request.path.contains(digest));
        assert!(fetched(new.layers[1].digest.hex()), "{seen:?}");
        assert!(!fetched(new.layers[0].digest.hex()), "{seen:?}");

        // Attached by hand, as any user can do: a loop device uses it.
        let second = disk(&daemon, &id, 2);
        let device = succeed(
            Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(second.join("disk.img")),
        );
        let path = format!("/v5/imagecaches/{id}");
        daemon.ask(TEAM, "DELETE", &path, None).expect(202);
        std::thread::sleep(Duration::from_millis(500));
        let waits = daemon.ask(TEAM, "GET", &path, None).expect(200);
        assert_eq!(waits["image_cache"]["status"], "Deleting");
        assert!(waits["image_cache"]["message"].as_str().unwrap().contains("in use"), "{waits}");
        succeed(Command::new("losetup").arg("--detach").arg(device.trim()));
        gone(&daemon, &id);
        assert_eq!(loops(&daemon.state().canonicalize().unwrap()), Vec::<String>::new());
        daemon.stop();
        assert!(!second.exists());
    });
}

#[case]
fn a_killed_daemon_resumes_the_disk() {
    with_disks(|| {
        let mut registry = Registry::spawn();
        let app = image(4);
        app.push(&mut registry, "app", "1").unwrap();
        let reference = format!("{}/app:1", registry.host());
        let mut daemon = Daemon::start(&[TEAM], &on_disks());
        registry.fault(Fault::StallAt { digest: app.layers[1].digest.clone(), offsets: vec![1000] });
        let id = daemon.order(TEAM, "web", std::slice::from_ref(&reference));
        let started = std::time::Instant::now();
        let committed = |daemon: &Daemon| {
            let answer = daemon.ask(TEAM, "GET", &format!("/larder/v1/caches/{id}"), None).expect(200);
            answer["details"]["layers"].as_array().unwrap().iter().any(|layer| layer["state"] == "committed")
        };
        while !committed(&daemon) {
            assert!(started.elapsed() < TIMEOUT, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon.kill();
        wait_for_release(&disk(&daemon, &id, 1));
        registry.heal();
        daemon.restart();
        daemon.settle(TEAM, &id, "Available", TIMEOUT);
        succeed(larder().arg("verify").arg(disk(&daemon, &id, 1)));
    });
}

/// An exported disk becomes a cache on another host, which has no registry and also creates disks.
#[case]
fn an_exported_disk_is_imported_by_another_daemon() {
    let needs = ["docker-registry", "podman", "busybox"].map(Need::Program);
    isolated(&[&TOOLS[..], &needs].concat(), || {
        let registry = docker::Registry::open();
        let shell = Image::builder(Format::Oci).layer(busybox().unwrap()).build();
        let reference = registry.push(&shell, "team/shell", "1");
        let mut first = Daemon::start(&[TEAM], &on_disks());
        let id = first.order(TEAM, "web", std::slice::from_ref(&reference));
        first.settle(TEAM, &id, "Available", TIMEOUT);
        let dir = tempfile::tempdir().unwrap();
        let (raw, archive) = (dir.path().join("raw"), dir.path().join("archive"));
        for (format, out) in [("raw", &raw), ("docker-archive", &archive)] {
            succeed(larder().arg("export").arg(disk(&first, &id, 1)).arg(out).args(["--format", format]));
        }
        first.stop();
        registry.stop();

        let second = Daemon::start(&[TEAM], &on_disks());
        for (name, source) in [("raw", &raw), ("archive", &archive)] {
            let mut import = larder();
            import.env("LARDER_HOST", second.endpoint()).env("LARDER_TOKEN", TEAM.token());
            import.args(["cache", "import", name, "--wait", "--json"]).arg(source);
            let answer: Value = serde_json::from_str(&second.explain(|| succeed(&mut import))).unwrap();
            let id = answer["image_cache"]["id"].as_str().unwrap();
            let imported = disk(&second, id, 1);
            wait_for_release(&imported);
            succeed(larder().arg("verify").arg(&imported));
            let at = tempfile::tempdir().unwrap();
            let image = imported.join("disk.img");
            succeed(
                Command::new("mount").args(["-o", "loop,ro,noload,nodev,nosuid"]).arg(image).arg(at.path()),
            );
            let said = Podman::new().run(at.path(), &reference, &["/bin/echo", "hello"]);
            assert_eq!(said, "hello\n", "{name}");
            succeed(Command::new("umount").arg(at.path()));
        }
        assert_eq!(fs::read_dir(second.state().join("imports")).unwrap().count(), 0);
    });
}

#[case]
fn a_container_starts_from_the_disk_of_a_daemon() {
    let needs = ["docker-registry", "podman", "busybox"].map(Need::Program);
    isolated(&[&TOOLS[..], &needs].concat(), || {
        let registry = docker::Registry::open();
        let shell = Image::builder(Format::Oci).layer(busybox().unwrap()).build();
        let reference = registry.push(&shell, "team/shell", "1");
        let daemon = Daemon::start(&[TEAM], &on_disks());
        let id = daemon.order(TEAM, "web", std::slice::from_ref(&reference));
        daemon.settle(TEAM, &id, "Available", TIMEOUT);
        let at = tempfile::tempdir().unwrap();
        let image = disk(&daemon, &id, 1).join("disk.img");
        succeed(Command::new("mount").args(["-o", "loop,ro,noload,nodev,nosuid"]).arg(image).arg(at.path()));
        assert_eq!(Podman::new().run(at.path(), &reference, &["/bin/echo", "hello"]), "hello\n");
    });
}
