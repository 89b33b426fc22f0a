//! `larder serve` as a process: it starts, refuses to start, stops, dies, and goes on where it was.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use larder::testing::image::{Format, Image, Layer};
use larder::testing::layer::LayerBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::daemon::{Daemon, ROOMY, Tenant, configure, serve};
use crate::harness::http::send;
use crate::harness::registry::Registry;
use crate::harness::served::random;
use crate::harness::{Need, isolated, run_within};

const NEEDS: &[Need] = &[Need::Program("docker-registry")];
const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(120);

/// Several layers, so that a build has many points at which it can be cut off.
fn image() -> Image {
    let layer =
        |seed: u64| Layer::from(LayerBuilder::new().file(format!("f{seed}"), random(seed, 6 << 20)).gzip());
    Image::builder(Format::Oci).layers((0..4).map(layer)).build()
}

#[test]
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

#[test]
fn tcp_for_nobody_is_refused() {
    isolated(NEEDS, || {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))), &[], "");
        let output = run_within(&mut serve(dir.path()), Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("tcp"), "{said}");
        configure(dir.path(), Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))), &[A], "");
        let output = run_within(&mut serve(dir.path()), Duration::from_secs(20));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("loopback"), "{said}");
    });
}

#[test]
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

#[test]
fn a_daemon_killed_while_it_builds_goes_on() {
    isolated(NEEDS, || {
        let registry = Registry::open();
        let image = registry.push(&image(), "team/app", "1");
        let mut daemon = Daemon::start(&[A], ROOMY);
        for (number, pause) in [0, 20, 60, 150, 300, 600].into_iter().enumerate() {
            let id = daemon.order(A, &format!("web-{number}"), std::slice::from_ref(&image));
            // Not a wait for anything: the point at which the blow falls.
            std::thread::sleep(Duration::from_millis(pause));
            daemon.kill();
            daemon.restart();
            daemon.settle(A, &id, "Available", LIMIT);
        }
        assert!(daemon.children().is_empty(), "a builder outlived its work\n{}", daemon.log());
    });
}

#[test]
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
                assert!(Instant::now() < deadline, "no builder is started\n{}", daemon.log());
            };
            std::thread::sleep(Duration::from_millis(number * 40));
            // One that has ended by now was faster than the blow.
            killed += usize::from(kill(Pid::from_raw(child), Signal::SIGKILL).is_ok());
            daemon.settle(A, &id, "Available", LIMIT);
        }
        assert!(killed > 0 && daemon.log().contains("signal 9"), "{killed}\n{}", daemon.log());
    });
}

#[test]
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
                "{} slow clients are still there\n{}",
                slow.len(),
                daemon.log()
            );
            // A byte now and then, which a time-out that starts anew with each would take for progress.
            slow.retain_mut(|stream| stream.write_all(b"x").is_ok() && !has_ended(stream));
            let answer = daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
            assert_eq!(answer, json!({"image_caches": []}));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

/// Whether the other side has closed the connection.
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

#[test]
fn connections_are_bounded() {
    isolated(NEEDS, || {
        let more = "api.max_connections = 8\napi.header_timeout_seconds = 2\n";
        let daemon = Daemon::start(&[A], &format!("{ROOMY}{more}"));
        let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(daemon.address()).unwrap()).collect();
        // Those beyond wait until the first are cut, so everybody is served in the end.
        let answer = send(daemon.address(), "GET", "/healthz", &[], &[]).unwrap();
        assert_eq!(answer.status, 200);
        drop(idle);
        daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
    });
}
