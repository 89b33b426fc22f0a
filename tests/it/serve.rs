//! The listeners of the daemon and changes while it runs: TLS, configuration reload by SIGHUP, a full disk.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::authority::Authority;
use crate::harness::daemon::{Daemon, ROOMY, Tenant, configure, serve};
use crate::harness::filesystem::unmount;
use crate::harness::registry::Registry;
use crate::harness::served::Running;
use crate::harness::{Need, exits, isolated, larder, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
const LIMIT: Duration = Duration::from_secs(60);

fn until(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20));
    }
}

fn status(daemon: &Daemon, tenant: Tenant) -> u16 {
    daemon.ask(tenant, "GET", "/v5/imagecaches", None).0.status
}

#[case]
fn tls_with_an_authority_of_ones_own() {
    isolated(&[Need::Program("openssl")], || {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path());
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address: SocketAddr = free.local_addr().unwrap();
        drop(free);
        let at = |name: &str| dir.path().join(name).display().to_string();
        let tls =
            format!("api.tls_certificate = '{}'\napi.tls_key = '{}'\n", at("server.pem"), at("server.key"));
        configure(dir.path(), Some(address), &[A], &format!("{ROOMY}{tls}"));
        let mut daemon = Running::start(&mut serve(dir.path()));
        let socket = dir.path().join("larder.sock");
        until("the socket exists", || socket.exists());
        let mode = fs::symlink_metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{mode:o}");

        let list = |ca: &str| {
            let mut command = larder();
            command.args(["cache", "ls", "--host", &format!("https://{address}"), "--ca", &at(ca)]);
            command.env("LARDER_TOKEN", A.token());
            command
        };
        until("it answers over TLS", || list("ca.pem").output().unwrap().status.success());
        // SIGHUP loads a new certificate without a restart.
        let other = dir.path().join("other");
        fs::create_dir(&other).unwrap();
        let second = Authority::new(&other);
        second.sign("server", "subjectAltName=IP:127.0.0.1");
        assert!(exits(69, &mut list("other/ca.pem")).contains("certificate"));
        for name in ["server.pem", "server.key"] {
            fs::copy(other.join(name), dir.path().join(name)).unwrap();
        }
        daemon.signal(Signal::SIGHUP);
        until("the new certificate is served", || list("other/ca.pem").output().unwrap().status.success());
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.code_within(LIMIT), Some(0));
    });
}

#[case]
fn tenants_come_and_go_with_sighup() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], ROOMY);
        assert_eq!((status(&daemon, A), status(&daemon, B)), (200, 401));
        let dir = daemon.config().parent().unwrap().to_owned();
        configure(&dir, Some(daemon.address()), &[B], ROOMY);
        daemon.signal(Signal::SIGHUP);
        until("the new tenant is known", || status(&daemon, B) == 200);
        assert_eq!(status(&daemon, A), 401, "the old token must be invalid");

        fs::write(daemon.config(), "[[tenant]]\nname = 'team-a'\nsurprise = 1\n").unwrap();
        daemon.signal(Signal::SIGHUP);
        until("the log shows the error", || daemon.log().contains("surprise"));
        assert_eq!(status(&daemon, B), 200, "{}", daemon.log());
    });
}

#[case]
fn without_tenants_tcp_serves_only_health_and_metrics() {
    isolated(&[], || {
        let daemon = Daemon::start(&[], ROOMY);
        let get = |path: &str| daemon.ask(A, "GET", path, None).0.status;
        assert_eq!(["/healthz", "/readyz", "/v5/imagecaches"].map(get), [200, 200, 401]);
        assert!(daemon.log().contains("no tenant has a token"), "{}", daemon.log());
        let dir = daemon.config().parent().unwrap().to_owned();
        configure(&dir, Some(daemon.address()), &[A], ROOMY);
        daemon.signal(Signal::SIGHUP);
        until("the first tenant is known", || status(&daemon, A) == 200);
    });
}

/// Writes zeros until the file system is full.
fn fill(path: &Path) {
    succeed(
        Command::new("sh").arg("-c").arg(format!("cat /dev/zero > '{}' 2>/dev/null || true", path.display())),
    );
}

#[case]
fn a_full_state_disk_is_reported_and_recovers() {
    isolated(&[Need::Program("docker-registry")], || {
        let registry = Registry::open();
        let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
        let image = registry.push(&Image::builder(Format::Oci).layer(layer).build(), "team/app", "1");
        let mut daemon = Daemon::start(&[A], ROOMY);
        daemon.stop();
        let state = daemon.state();
        succeed(Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&state));
        daemon.restart();
        let kept = daemon.order(A, "kept", std::slice::from_ref(&image));
        daemon.settle(A, &kept, "Available", LIMIT);
        let gone = daemon.order(A, "gone", std::slice::from_ref(&image));
        daemon.settle(A, &gone, "Available", LIMIT);

        let filler = state.join("filler");
        fill(&filler);
        let mut refused = 0;
        // Orders are accepted while the write-ahead log has space.
        for number in 0..200 {
            let order = json!({"name": format!("n{number}"), "images": [image], "building_config": {"cluster": "here"}});
            let answer = daemon.ask(A, "POST", "/v5/imagecaches", Some(&order));
            if answer.0.status == 503 {
                assert_eq!(answer.expect(503)["errorCode"], "CCE.01503001");
                refused += 1;
                break;
            }
            answer.expect(201);
        }
        assert_eq!(refused, 1, "no order was refused\n{}", daemon.log());
        daemon.ask(A, "GET", &format!("/v5/imagecaches/{kept}"), None).expect(200);
        // A deletion frees space, and is not refused for lack of it.
        daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{gone}"), None).expect(202);
        until("the cache is deleted", || {
            daemon.ask(A, "GET", &format!("/v5/imagecaches/{gone}"), None).0.status == 404
        });

        fs::remove_file(&filler).unwrap();
        let after = daemon.order(A, "after", std::slice::from_ref(&image));
        daemon.settle(A, &after, "Available", LIMIT);
        daemon.kill();
        daemon.restart();
        for id in [&kept, &after] {
            let cache = daemon.ask(A, "GET", &format!("/v5/imagecaches/{id}"), None).expect(200);
            assert_eq!(cache["image_cache"]["status"], "Available");
        }
        daemon.stop();
        unmount(&state);
    });
}
