//! `larder serve` as a process: it starts, refuses to start, stops, is killed, and resumes its work.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::daemon::{Daemon, ROOMY, Tenant, configure, serve};
use crate::harness::http::send;
use crate::harness::registry::Registry;
use crate::harness::served::random;
use crate::harness::{Need, exits, isolated, larder, run_within, succeed};

const NEEDS: &[Need] = &[Need::Program("docker-registry")];
const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(120);

/// Returns an image with several layers, so that a build has many points at which it can be interrupted.
fn image() -> Image {
    let layer =
        |seed: u64| Layer::from(LayerBuilder::new().file(format!("f{seed}"), random(seed, 6 << 20)).gzip());
    Image::builder(Format::Oci).layers((0..4).map(layer)).build()
}

#[case]
fn a_second_daemon_on_the_same_state_ends_at_once() {
    isolated(NEEDS, || {
        let daemon = Daemon::start(&[A], ROOMY);
        let mut second = serve(daemon.config().parent().unwrap());
        let output = run_within(&mut second, Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(said.contains("in use"), "{said}");
        daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
    });
}

#[case]
fn tcp_without_tls_is_only_for_loopback() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))), &[A], "");
        let output = run_within(&mut serve(dir.path()), Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("loopback"), "{said}");
    });
}

#[case]
fn records_outlive_a_stop_and_a_kill() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&image(), "team/app", "1");
        let mut daemon = Daemon::start(&[A], ROOMY);
        let id = daemon.order(A, "web", &[image]);
        let cache = daemon.settle(A, &id, "Available", LIMIT);
        daemon.stop();
        daemon.restart();
        let path = format!("/v5/imagecaches/{id}");
        assert_eq!(daemon.ask(A, "GET", &path, None).expect(200)["image_cache"], cache);
        daemon.kill();
        daemon.restart();
        assert_eq!(daemon.ask(A, "GET", &path, None).expect(200)["image_cache"], cache);
        daemon.ask(A, "DELETE", &path, None).expect(202);
        daemon.kill();
        daemon.restart();
        let deadline = Instant::now() + LIMIT;
        while daemon.ask(A, "GET", &path, None).0.status != 404 {
            assert!(Instant::now() < deadline, "the deletion is not finished\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[case]
fn a_daemon_killed_while_it_builds_resumes() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&image(), "team/app", "1");
        let mut daemon = Daemon::start(&[A], ROOMY);
        for (number, pause) in [0, 20, 60, 150, 300, 600].into_iter().enumerate() {
            let id = daemon.order(A, &format!("web-{number}"), std::slice::from_ref(&image));
            // This chooses the moment of the kill, and waits for nothing.
            std::thread::sleep(Duration::from_millis(pause));
            daemon.kill();
            daemon.restart();
            daemon.settle(A, &id, "Available", LIMIT);
        }
        assert!(daemon.children().is_empty(), "a builder is left\n{}", daemon.log());
    });
}

#[case]
fn a_killed_builder_is_started_again() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&image(), "team/app", "1");
        let daemon = Daemon::start(&[A], &format!("{ROOMY}caches.build_retry_pause_seconds = 1\n"));
        let mut killed = 0;
        for number in 0..8 {
            let id = daemon.order(A, &format!("web-{number}"), std::slice::from_ref(&image));
            let deadline = Instant::now() + LIMIT;
            let child = loop {
                if let Some(child) = daemon.children().first() {
                    break *child;
                }
                assert!(Instant::now() < deadline, "no builder was started\n{}", daemon.log());
            };
            std::thread::sleep(Duration::from_millis(number * 40));
            // A child that has ended by now was faster than the signal.
            killed += usize::from(kill(Pid::from_raw(child), Signal::SIGKILL).is_ok());
            daemon.settle(A, &id, "Available", LIMIT);
        }
        assert!(killed > 0 && daemon.log().contains("signal 9"), "{killed}\n{}", daemon.log());
    });
}

#[case]
fn a_daemon_killed_while_it_refreshes_resumes() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let reference = registry.push(&image(), "team/app", "1");
        let mut daemon = Daemon::start(&[A], ROOMY);
        let id = daemon.order(A, "web", std::slice::from_ref(&reference));
        daemon.settle(A, &id, "Available", LIMIT);
        for (number, pause) in [0, 30, 80, 150, 300].into_iter().enumerate() {
            let changed =
                Layer::from(LayerBuilder::new().file("new", random(100 + number as u64, 2 << 20)).gzip());
            let changed = Image::builder(Format::Oci).layer(changed).build();
            registry.push(&changed, "team/app", "1");
            daemon.ask(A, "POST", &format!("/larder/v1/caches/{id}/refresh"), None).expect(202);
            std::thread::sleep(Duration::from_millis(pause));
            daemon.kill();
            daemon.restart();
            // The old cache is served until the new one has replaced it.
            let details = || daemon.ask(A, "GET", &format!("/larder/v1/caches/{id}"), None).expect(200);
            let deadline = Instant::now() + LIMIT;
            let manifest = json!(changed.manifest.digest.to_string());
            loop {
                let now = details();
                assert_eq!(now["image_cache"]["status"], "Available", "{now}");
                if now["details"]["refreshing"] == false {
                    assert_eq!(now["details"]["images"][0]["manifest"], manifest, "{now}");
                    break;
                }
                assert!(Instant::now() < deadline, "{now}\n{}", daemon.log());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let volumes = daemon.state().join("tenants/team-a/volumes");
        let deadline = Instant::now() + LIMIT;
        while fs::read_dir(&volumes).unwrap().count() > 1
            || fs::read_dir(daemon.state().join("trash")).unwrap().count() > 0
        {
            assert!(Instant::now() < deadline, "old volumes are left\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let volume = fs::read_dir(&volumes).unwrap().next().unwrap().unwrap().path();
        succeed(larder().arg("verify").arg(volume));
    });
}

#[case]
fn a_damaged_database_is_reported_and_not_replaced() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&image(), "team/app", "1");
        let mut daemon = Daemon::start(&[A], ROOMY);
        let id = daemon.order(A, "web", &[image]);
        daemon.settle(A, &id, "Available", LIMIT);
        daemon.stop();
        let database = daemon.state().join("larder.db");
        let whole = fs::read(&database).unwrap();
        let volume = daemon.state().join("tenants/team-a/volumes").join(format!("{id}.1"));
        let mut flipped = whole.clone();
        let at = flipped.windows(8).rposition(|bytes| bytes == b"\"tenant\"").unwrap();
        flipped[at + 3] ^= 1;
        for (what, bytes) in [
            ("torn", &whole[..whole.len() / 2]),
            ("flipped", &flipped[..]),
            ("empty", b""),
            ("other", b"SQLite"),
        ] {
            fs::write(&database, bytes).unwrap();
            let said = exits(65, &mut serve(daemon.config().parent().unwrap()));
            assert!(said.contains("larder.db") && said.contains("restore a backup"), "{what}: {said}");
            assert_eq!(fs::read(&database).unwrap(), bytes, "{what} was changed");
            assert!(volume.join("cache.json").exists());
        }
        fs::remove_file(&database).unwrap();
        let said = exits(65, &mut serve(daemon.config().parent().unwrap()));
        assert!(said.contains("volumes of tenants exist") && !database.exists(), "{said}");
        // With the backup restored, everything works as before.
        fs::write(&database, &whole).unwrap();
        daemon.restart();
        let cache = daemon.ask(A, "GET", &format!("/v5/imagecaches/{id}"), None).expect(200);
        assert_eq!(cache["image_cache"]["status"], "Available");
    });
}

/// Returns the resources of a daemon: descriptors, control groups of builders, their secrets, and children.
fn held(daemon: &Daemon) -> (usize, Vec<String>, usize, usize) {
    let groups = ["memory", "cpu", "pids"].map(|controller| format!("/sys/fs/cgroup/{controller}"));
    let own = format!("larder-{}.", daemon.pid());
    let names =
        |dir: &String| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().file_name());
    let groups = groups.iter().flat_map(names).filter_map(|name| name.into_string().ok());
    let groups = groups.filter(|name| name.starts_with(&own)).collect();
    let descriptors = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let work = fs::read_dir(daemon.state().join("work")).unwrap().count();
    (descriptors, groups, work, daemon.children().len())
}

#[case]
fn ended_builds_leave_no_resources() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&image(), "team/app", "1");
        let daemon = Daemon::start(&[A], ROOMY);
        let images = std::slice::from_ref(&image);
        let settled = |held: &(usize, Vec<String>, usize, usize)| held.1.is_empty() && held.2 + held.3 == 0;
        let round = |number: usize| {
            let [kept, cancelled, failed] =
                ["kept", "cancelled", "failed"].map(|name| format!("{name}-{number}"));
            let kept = daemon.order(A, &kept, images);
            let cancelled = daemon.order(A, &cancelled, images);
            let failed = daemon.order(A, &failed, &[registry.reference("team/none:1")]);
            std::thread::sleep(Duration::from_millis(40));
            let status =
                daemon.ask(A, "POST", &format!("/larder/v1/caches/{cancelled}/cancel"), None).0.status;
            assert!([202, 409].contains(&status), "{status}");
            // If the client of a plan disconnects, its process is killed.
            let plan =
                json!({"name": "x", "images": images, "building_config": {"cluster": "here"}}).to_string();
            for _ in 0..3 {
                let mut stream = TcpStream::connect(daemon.address()).unwrap();
                let head = format!(
                    "POST /larder/v1/plan HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {}\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{plan}",
                    A.token(),
                    plan.len()
                );
                stream.write_all(head.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(30));
            }
            daemon.settle(A, &kept, "Available", LIMIT);
            daemon.settle(A, &failed, "Failed", LIMIT);
            for id in [&kept, &cancelled, &failed] {
                daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{id}"), None).expect(202);
            }
            let deadline = Instant::now() + LIMIT;
            loop {
                let left = daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
                let held = held(&daemon);
                if left == json!({"image_caches": []}) && settled(&held) {
                    return held.0;
                }
                assert!(Instant::now() < deadline, "{left} {held:?}\n{}", daemon.log());
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        round(0);
        let first = round(1);
        let last = (2..7).map(round).min().unwrap();
        assert!(last <= first + 2, "the number of descriptors grew from {first} to {last}");
        let state = daemon.state();
        assert_eq!(fs::read_dir(state.join("tenants/team-a/volumes")).unwrap().count(), 0);
        let deadline = Instant::now() + LIMIT;
        while ["trash", "tenants/team-a/layers"]
            .iter()
            .any(|dir| fs::read_dir(state.join(dir)).unwrap().count() > 0)
        {
            assert!(Instant::now() < deadline, "resources are left\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

#[case]
fn a_slow_client_is_cut_while_others_are_served() {
    isolated(NEEDS, || {
        let more = "api.header_timeout_seconds = 2\napi.body_timeout_seconds = 2\n";
        let daemon = Daemon::start(&[A], &format!("{ROOMY}{more}"));
        let token = A.token();
        let heads = [
            String::new(),
            "GET /v5/imagecaches HTTP/1.1\r\nHost: x\r\n".to_owned(),
            format!(
                "POST /v5/imagecaches HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n\
                 Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{"
            ),
        ];
        let mut slow: Vec<TcpStream> = (0..60)
            .map(|n| {
                let mut stream = TcpStream::connect(daemon.address()).unwrap();
                stream.write_all(heads[n % heads.len()].as_bytes()).unwrap();
                stream.set_nonblocking(true).unwrap();
                stream
            })
            .collect();
        let deadline = Instant::now() + Duration::from_secs(40);
        while !slow.is_empty() {
            assert!(
                Instant::now() < deadline,
                "{} slow clients are still connected\n{}",
                slow.len(),
                daemon.log()
            );
            // Send a byte now and then. A timeout that restarts with each byte would count this as progress.
            slow.retain_mut(|stream| stream.write_all(b"x").is_ok() && !has_ended(stream));
            let answer = daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
            assert_eq!(answer, json!({"image_caches": []}));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

/// Reports whether the other side has closed the connection.
fn has_ended(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

#[case]
fn connections_are_bounded() {
    isolated(NEEDS, || {
        let more = "api.max_connections = 8\napi.header_timeout_seconds = 2\n";
        let daemon = Daemon::start(&[A], &format!("{ROOMY}{more}"));
        let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(daemon.address()).unwrap()).collect();
        // Connections beyond the limit wait until the first ones are closed, so every client is served
        // eventually.
        let answer = send(daemon.address(), "GET", "/healthz", &[], &[]).unwrap();
        assert_eq!(answer.status, 200);
        drop(idle);
        daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
    });
}
