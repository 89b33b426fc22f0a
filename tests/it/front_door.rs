//! Unauthenticated clients cannot starve the tenants of the daemon, and its files must have safe modes.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;

use crate::harness::authority::Authority;
use crate::harness::daemon::{Daemon, ROOMY, Tenant, configure, serve};
use crate::harness::http::send;
use crate::harness::{Need, exits, isolated, registry};

const A: Tenant = Tenant("team-a");
const PROBE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";

/// Keeps `many` connections open, sends a probe over each one every second, and reopens closed ones. Returns
/// how many were closed.
fn flood(address: SocketAddr, many: usize, stop: &AtomicBool) -> usize {
    let mut connections: Vec<Option<TcpStream>> = (0..many).map(|_| None).collect();
    let mut closed = 0;
    while !stop.load(Ordering::Relaxed) {
        for connection in &mut connections {
            if connection.as_mut().is_some_and(|stream| !probe(stream)) {
                *connection = None;
                closed += 1;
            }
            if connection.is_none() {
                *connection = TcpStream::connect(address).ok();
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
    closed
}

/// Sends a probe. Returns false if the connection was closed.
fn probe(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    let open = match stream.read(&mut buffer) {
        Ok(read) => read > 0,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    };
    open && stream.write_all(PROBE).is_ok()
}

#[case]
fn three_hundred_slow_connections_block_no_client() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], ROOMY);
        let stop = AtomicBool::new(false);
        let closed = thread::scope(|scope| {
            let flood = scope.spawn(|| flood(daemon.address(), 300, &stop));
            thread::sleep(Duration::from_secs(2));
            // The tenant has the same address, as behind one proxy.
            let token = A.token();
            let mut slowest = Duration::ZERO;
            for _ in 0..8 {
                let started = Instant::now();
                let answer =
                    send(daemon.address(), "GET", "/v5/imagecaches", &[("X-Auth-Token", &token)], &[]);
                let answer = answer.map(|answer| answer.status);
                slowest = slowest.max(started.elapsed());
                stop.store(!matches!(answer, Ok(200)), Ordering::Relaxed);
                assert!(matches!(answer, Ok(200)), "{answer:?}\n{}", daemon.log());
                thread::sleep(Duration::from_millis(300));
            }
            stop.store(true, Ordering::Relaxed);
            assert!(slowest < Duration::from_secs(5), "{slowest:?}");
            flood.join().unwrap()
        });
        assert!(closed > 300 - 32, "{closed} were closed");
        assert!(daemon.log().contains("the limit of connections"), "{}", daemon.log());
    });
}

#[case]
fn a_request_is_http_by_the_letter() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], ROOMY);
        let twice = r#"{"name":"a","name":"b","images":["x"],"building_config":{"cluster":"c"}}"#;
        let order = format!(
            "POST /larder/v1/plan HTTP/1.1\r\nHost: h\r\nX-Auth-Token: {}\r\nContent-Type: application/json\r\n\
             Connection: close\r\nContent-Length: {}\r\n\r\n{twice}",
            A.token(),
            twice.len()
        );
        for (sent, status) in [
            ("GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200),
            ("GET /healthz HTTP/1.0\r\n\r\n", 200),
            ("GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
            ("GET /healthz HTTP/1.1\r\nHost: h\r\nHost: h\r\nConnection: close\r\n\r\n", 400),
            ("GET /healthz HTTP/1.1\nHost: h\r\nConnection: close\r\n\r\n", 400),
            ("GET /healthz HTTP/1.1\r\nHost: h\nConnection: close\r\n\r\n", 400),
            ("GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\n", 400),
            (&order, 400),
        ] {
            let mut stream = TcpStream::connect(daemon.address()).unwrap();
            stream.write_all(sent.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer[9..12], status.to_string(), "{sent:?}: {answer}");
        }
    });
}

/// Returns the exit code and the message of a daemon whose file at `path` has this mode.
fn refused(dir: &Path, path: &Path, mode: u32) -> String {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let told = exits(77, &mut serve(dir));
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    told
}

#[case]
fn secrets_that_others_can_read_are_refused() {
    isolated(&[Need::Program("openssl")], || {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        Authority::new(dir.path()).sign("server", "subjectAltName=IP:127.0.0.1");
        let tls = format!(
            "api.tls_certificate = '{}'\napi.tls_key = '{}'\n",
            at("server.pem").display(),
            at("server.key").display()
        );
        configure(dir.path(), Some("127.0.0.1:0".parse().unwrap()), &[A], &format!("{ROOMY}{tls}"));
        for (name, mode) in [("team-a.secret", 0o644), ("team-a.secret", 0o620), ("server.key", 0o640)] {
            let told = refused(dir.path(), &at(name), mode);
            assert!(told.contains(name) && told.contains(&format!("mode is {mode:04o}")), "{told}");
            assert!(told.contains("chmod 600"), "{told}");
        }
    });
}

#[case]
fn a_pull_secret_that_others_can_read_is_used_with_a_warning() {
    isolated(&[Need::Program("docker-registry"), Need::Program("htpasswd")], || {
        let registry = registry::Registry::with_password();
        let layer = Layer::from(LayerBuilder::new().file("etc/motd", "x").gzip());
        let image = Image::builder(Format::Oci).layer(layer).build();
        let images = [registry.push(&image, "team/private", "1")];
        let daemon = Daemon::start(&[A], ROOMY);
        let secret = daemon.secrets().join("team-a/registry");
        fs::create_dir_all(&secret).unwrap();
        let file = secret.join(".dockerconfigjson");
        fs::copy(registry.docker_config().join("config.json"), &file).unwrap();
        for (mode, name, warned) in [(0o600, "private", false), (0o644, "open", true)] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let order = serde_json::json!({
                "name": name, "images": images,
                "building_config": {"cluster": "here", "image_pull_secrets": ["team-a:registry"]},
            });
            let answer = daemon.ask(A, "POST", "/v5/imagecaches", Some(&order)).expect(201);
            let id = answer["image_cache"]["id"].as_str().unwrap();
            daemon.settle(A, id, "Available", Duration::from_secs(60));
            let log = daemon.log();
            assert_eq!(log.contains("a pull secret is not private: its mode is 0644"), warned, "{log}");
        }
    });
}
