//! Image caches of a daemon from uploaded archives, without a registry.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer, busybox};
use larder_testing::layer::LayerBuilder;
use serde_json::Value;

use crate::harness::daemon::{Answer, Daemon, ROOMY, Tenant};
use crate::harness::http::send;
use crate::harness::podman::Podman;
use crate::harness::served::{Served, cache, random};
use crate::harness::{Need, exits, isolated, larder, run_within, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
const LIMIT: Duration = Duration::from_secs(120);
/// The required query of an import, with the names that [`Upload`] uses.
const QUERY: &str = "name=web&cluster=local&image=r.example.com/app-0:1";

/// Archives of one image, created by `larder export`. Their registry is stopped.
struct Upload {
    served: Served,
    config: Digest,
}

impl Upload {
    fn new(image: Image) -> Self {
        let config = image.config.digest.clone();
        let served = Served::new([image]);
        succeed(&mut served.build(&served.volume(), 512 << 20));
        served.registry.forget();
        Upload { served, config }
    }

    /// Creates archives of an image with layers of 3 MiB that do not compress.
    fn random(layers: u64) -> Self {
        let layer = |seed: u64| {
            Layer::from(LayerBuilder::new().file(format!("f{seed}"), random(seed, 3 << 20)).gzip())
        };
        Upload::new(Image::builder(Format::Oci).layers((0..layers).map(layer)).build())
    }

    fn reference(&self) -> String {
        self.served.references().remove(0)
    }

    fn archive(&self, format: &str) -> PathBuf {
        let out = self.served.beside(format);
        if !out.exists() {
            let mut export = larder();
            succeed(export.arg("export").arg(self.served.volume()).arg(&out).args(["--format", format]));
        }
        out
    }

    fn bytes(&self, format: &str) -> Vec<u8> {
        fs::read(self.archive(format)).unwrap()
    }

    /// Returns the query that names the image.
    fn query(&self, name: &str) -> String {
        format!("name={name}&cluster=local&image={}", self.reference())
    }

    fn assert_no_requests(&self) {
        assert_eq!(self.served.registry.seen().len(), 0, "{:?}", self.served.registry.seen());
    }
}

/// Returns `larder cache import` as a tenant.
fn import(daemon: &Daemon, tenant: Tenant, name: &str, source: &Path) -> Command {
    let mut command = larder();
    for variable in ["LARDER_ACCESS_KEY", "LARDER_SECRET_KEY", "LARDER_CA"] {
        command.env_remove(variable);
    }
    command.env("LARDER_HOST", daemon.endpoint()).env("LARDER_TOKEN", tenant.token());
    command.args(["cache", "import", name]).arg(source);
    command
}

fn id(answer: &str) -> String {
    let json: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    json["image_cache"]["id"].as_str().unwrap().to_owned()
}

fn volume(daemon: &Daemon, tenant: Tenant, id: &str) -> PathBuf {
    daemon.state().join("tenants").join(tenant.0).join("volumes").join(format!("{id}.1"))
}

/// Sends one import request.
fn post(daemon: &Daemon, tenant: Tenant, query: &str, more: &[(&str, &str)], body: &[u8]) -> Answer {
    let token = tenant.token();
    let mut headers = vec![("X-Auth-Token", token.as_str())];
    if !more.iter().any(|(name, _)| *name == "Content-Type") {
        headers.push(("Content-Type", "application/x-tar"));
    }
    headers.extend(more);
    let path = format!("/larder/v1/import?{query}");
    Answer(send(daemon.address(), "POST", &path, &headers, body).unwrap())
}

/// Sends the headers of an import whose body has the declared `length`.
fn begin(daemon: &Daemon, query: &str, length: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.address()).unwrap();
    let head = format!(
        "POST /larder/v1/import?{query} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {}\r\n\
         Content-Type: application/octet-stream\r\n{length}\r\n\r\n",
        A.token()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

fn status(stream: &mut TcpStream) -> String {
    let mut answer = [0; 12];
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Returns the number of archives that the daemon has open, including unlinked files.
fn held(daemon: &Daemon) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let imports = daemon.state().canonicalize().unwrap().join("imports");
    links.filter(|link| link.starts_with(&imports) && *link != imports).count()
}

fn until(daemon: &Daemon, what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}\n{}", daemon.log());
        sleep(Duration::from_millis(20));
    }
}

/// Checks that neither an archive nor a volume nor an additional record is left.
fn nothing_is_left(daemon: &Daemon, records: usize) {
    until(daemon, "a record or file is left", || {
        let volumes = daemon.state().join("tenants/team-a/volumes");
        files(&daemon.state().join("imports")) + files(&volumes) + files(&daemon.state().join("trash")) == 0
            && held(daemon) == 0
    });
    let list = daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
    assert_eq!(list["image_caches"].as_array().unwrap().len(), records, "{list}");
}

#[case]
fn archives_become_caches_without_a_registry() {
    isolated(&["busybox", "podman"].map(Need::Program), || {
        let shell = Image::builder(Format::Oci).layer(busybox().unwrap()).build();
        let sent = Upload::new(shell);
        let daemon = Daemon::start(&[A], ROOMY);
        let volume_of_mine = sent.served.volume();
        let sources =
            ["docker-archive", "oci-archive", "oci-layout"].map(|format| (format, sent.archive(format)));
        for (name, source) in sources.into_iter().chain([("volume", volume_of_mine)]) {
            let answer = succeed(import(&daemon, A, name, &source).args(["--wait", "--json"]));
            let id = id(&answer);
            let of_it = volume(&daemon, A, &id);
            succeed(larder().arg("verify").arg(&of_it));
            let image = cache(&of_it).content.images.remove(0);
            assert_eq!((image.name, image.config), (sent.reference(), sent.config.clone()), "{name}");
            if name == "docker-archive" {
                let said = Podman::new().run(&of_it, &sent.reference(), &["/bin/echo", "hello"]);
                assert_eq!(said, "hello\n");
            }
            let path = format!("/larder/v1/caches/{id}");
            let shown = daemon.ask(A, "GET", &path, None).expect(200);
            assert_eq!(shown["image_cache"]["images"][0], sent.reference());
            assert_eq!(shown["image_cache"]["image_cache_size"], 20);
            assert!(shown["details"]["archive"].as_u64().unwrap() > 1000, "{shown}");
            let events = shown["details"]["events"].to_string();
            assert!(events.contains("was received") && events.contains("sealed"), "{events}");
            let refused = daemon.ask(A, "POST", &format!("{path}/refresh"), None).expect(409);
            assert!(refused["errorMessage"].as_str().unwrap().contains("archive"), "{refused}");
            // The layout consists of the same blobs as the archive of one image.
            let origin = &shown["details"]["layers"][0]["origin"];
            assert_eq!(origin, if name == "oci-layout" { "reused" } else { "fetched" }, "{name}");
            assert!(daemon.log().lines().all(|line| !line.contains("ustar")));
        }
        sent.assert_no_requests();
        until(&daemon, "an archive is left", || files(&daemon.state().join("imports")) == 0);
        let list = daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
        for one in list["image_caches"].as_array().unwrap() {
            let path = format!("/v5/imagecaches/{}", one["id"].as_str().unwrap());
            daemon.ask(A, "DELETE", &path, None).expect(202);
        }
        until(&daemon, "deletions", || {
            daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200)["image_caches"] == serde_json::json!([])
        });
        nothing_is_left(&daemon, 0);
    });
}

/// An upload from standard input, compressed as a whole, with access keys, and under a name that the sender
/// chooses.
#[case]
fn other_ways_to_send() {
    isolated(&[], || {
        let sent = Upload::random(2);
        let daemon = Daemon::start(&[A], ROOMY);
        let packed = sent.served.beside("packed");
        fs::write(&packed, zstd::encode_all(&sent.bytes("oci-archive")[..], 1).unwrap()).unwrap();
        let mut stream = import(&daemon, A, "stream", Path::new("-"));
        stream.args(["--wait", "--json"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = stream.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&sent.bytes("docker-archive")).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let streamed = id(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(cache(&volume(&daemon, A, &streamed)).content.images[0].config, sent.config);
        succeed(import(&daemon, A, "packed", &packed).arg("--wait"));
        for source in ["docker-archive", "oci-layout"] {
            let mut keys = import(&daemon, A, &format!("keys-{source}"), &sent.archive(source));
            let known = A.credentials();
            keys.env_remove("LARDER_TOKEN").env("LARDER_ACCESS_KEY", known["access_key"].as_str().unwrap());
            succeed(keys.env("LARDER_SECRET_KEY", known["secret_key"].as_str().unwrap()).arg("--wait"));
            let said = exits(77, keys.env("LARDER_SECRET_KEY", "another"));
            assert!(said.contains("CCE.01401001"), "{said}");
        }
        let none = import(&daemon, A, "no", &sent.archive("oci-archive"))
            .args(["--image", "r.example.com/other:1", "--wait"])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&none.stderr);
        // The message must not reveal the path on the host.
        let told = format!("the archive contains no image of that name; it contains {}", sent.reference());
        assert!(none.status.code() == Some(64) && said.contains(&told), "{said}");
        sent.assert_no_requests();
    });
}

#[case]
fn a_damaged_archive_fails_and_leaves_nothing() {
    isolated(&[], || {
        let sent = Upload::random(2);
        let daemon = Daemon::start(&[A], ROOMY);
        let whole = sent.bytes("docker-archive");
        // An offset in the content of a file, far from every header.
        let inside = random(1, 3 << 20)[1 << 20..][..64].to_vec();
        let at = whole.windows(64).position(|window| window == inside).unwrap();
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        let cases = [
            ("flipped", &flipped[..], "sha256:"),
            ("cut", &whole[..whole.len() / 2], "the archive"),
            ("no-tar", &random(5, 1 << 20)[..], "the archive"),
        ];
        for (number, (name, bytes, said)) in cases.into_iter().enumerate() {
            let answer = post(&daemon, A, &sent.query(name), &[], bytes).expect(201);
            assert_eq!(answer["image_cache"]["status"], "Creating");
            let id = answer["image_cache"]["id"].as_str().unwrap();
            let failed = daemon.settle(A, id, "Failed", LIMIT);
            let message = failed["message"].as_str().unwrap();
            assert!(message.contains(said), "{name}: {message}");
            assert!(!message.contains(daemon.state().to_str().unwrap()), "{message}");
            nothing_is_left(&daemon, number + 1);
        }
        sent.assert_no_requests();
    });
}

#[case]
fn what_cannot_be_is_refused() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], &ROOMY.replace("20TiB", "50GiB"));
        let tar = LayerBuilder::new().file("a", "b").tar();
        let code = |query: &str, more: &[(&str, &str)], body: &[u8]| {
            let answer = post(&daemon, A, query, more, body);
            let json: Value = serde_json::from_slice(&answer.0.body).unwrap();
            json["errorCode"].as_str().unwrap_or_default().to_owned()
        };
        for bad in ["", "name=web", "name=Web&cluster=local&image=a", "name=web&cluster=local&image=A%20B"] {
            assert_eq!(code(bad, &[], &tar), "CCE.01400001", "{bad}");
        }
        assert_eq!(code(&format!("{QUERY}&image_cache_size=401"), &[], &tar), "CCE.01400001");
        assert_eq!(code(QUERY, &[], b""), "CCE.01400001");
        assert_eq!(code(QUERY, &[("Content-Type", "application/json")], &tar), "CCE.01415001");
        assert_eq!(code(QUERY, &[("Content-Encoding", "gzip")], &tar), "CCE.01415001");
        assert_eq!(code(QUERY, &[], &larder_testing::layer::gzip(&tar)), "CCE.01415001");
        assert_eq!(code(QUERY, &[("Idempotency-Key", "a b")], &tar), "CCE.01400001");
        let other = Digest::sha256(b"other");
        assert_eq!(code(QUERY, &[("X-Sdk-Content-Sha256", other.hex())], &tar), "CCE.01400001");
        let stranger =
            send(daemon.address(), "POST", &format!("/larder/v1/import?{QUERY}"), &[], &tar).unwrap();
        assert_eq!(stranger.status, 401);
        // The daemon refuses these from the headers, before it reads the body.
        let gib = |gib: u64| format!("Content-Length: {}", gib << 30);
        let cases = [
            (format!("{QUERY}&image_cache_size=20"), gib(21), "413"),
            (format!("{QUERY}&image_cache_size=20"), gib(20), "100"),
            (format!("{QUERY}&image_cache_size=30"), gib(21), "507"),
            (format!("{QUERY}&image_cache_size=51"), gib(1), "507"),
            (format!("{QUERY}&image_cache_size=30"), "Transfer-Encoding: chunked".into(), "507"),
        ];
        for (query, length, want) in cases {
            let mut stream = begin(&daemon, &query, &format!("{length}\r\nExpect: 100-continue"));
            let got = status(&mut stream);
            // If the disk of this machine is small, the request is refused for lack of disk space.
            assert!(got == want || (want == "100" && got == "507"), "{query} {length}: {got}");
        }
        nothing_is_left(&daemon, 0);
    });
}

#[case]
fn a_disconnected_client_leaves_nothing() {
    isolated(&[], || {
        let more = "api.body_timeout_seconds = 10\n";
        let daemon = Daemon::start(&[A], &format!("{}{more}", ROOMY.replace("20TiB", "60GiB")));
        let half = random(7, 8 << 20);
        for number in 0..3 {
            let mut streams: Vec<TcpStream> = (0..2)
                .map(|at| {
                    let query = format!("name=web-{at}&cluster=local&image=a:1");
                    let mut stream = begin(&daemon, &query, "Content-Length: 100000000");
                    stream.write_all(&half).unwrap();
                    stream
                })
                .collect();
            until(&daemon, "the upload was not received", || held(&daemon) == 2);
            assert_eq!(
                files(&daemon.state().join("imports")),
                0,
                "an incomplete archive must not have a name"
            );
            let list = daemon.ask(A, "GET", "/v5/imagecaches", None).expect(200);
            assert_eq!(list["image_caches"].as_array().unwrap().len(), 0, "{list}");
            // The uploads reach the limit of one tenant and use all the space. Both are released afterwards.
            assert_eq!(status(&mut begin(&daemon, QUERY, "Content-Length: 100")), "429");
            let order = serde_json::json!({"name": "x", "images": ["a:1"], "image_cache_size": 30,
                "building_config": {"cluster": "here"}});
            daemon.ask(A, "POST", "/larder/v1/plan", Some(&order)).expect(507);
            if number == 0 {
                // A stalled client is disconnected.
                assert_eq!(status(&mut streams[0]), "400");
            }
            drop(streams);
            nothing_is_left(&daemon, 0);
        }
        let mut stream = begin(&daemon, QUERY, "Content-Length: 100000000");
        stream.write_all(&half).unwrap();
        until(&daemon, "the upload was not received", || held(&daemon) == 1);
        let mut daemon = daemon;
        daemon.stop();
        daemon.restart();
        nothing_is_left(&daemon, 0);
    });
}

#[case]
fn a_daemon_killed_while_it_imports_resumes() {
    isolated(&[], || {
        let sent = Upload::random(6);
        let bytes = sent.bytes("docker-archive");
        let mut daemon = Daemon::start(&[A], ROOMY);
        let mut stream = begin(&daemon, QUERY, &format!("Content-Length: {}", bytes.len()));
        stream.write_all(&bytes[..bytes.len() / 2]).unwrap();
        until(&daemon, "the upload was not received", || held(&daemon) == 1);
        daemon.kill();
        assert_eq!(files(&daemon.state().join("imports")), 0, "a crash left an archive");
        daemon.restart();
        nothing_is_left(&daemon, 0);
        for (number, pause) in [0, 10, 40, 100, 200].into_iter().enumerate() {
            let query = sent.query(&format!("web-{number}"));
            let answer = post(&daemon, A, &query, &[], &bytes).expect(201);
            let id = answer["image_cache"]["id"].as_str().unwrap();
            // This chooses the moment of the kill, and waits for nothing.
            sleep(Duration::from_millis(pause));
            daemon.kill();
            daemon.restart();
            daemon.settle(A, id, "Available", LIMIT);
            succeed(larder().arg("verify").arg(volume(&daemon, A, id)));
            daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{id}"), None).expect(202);
        }
        until(&daemon, "an archive is left", || files(&daemon.state().join("imports")) == 0);
        // An archive without a record, as a crash between the two steps leaves it.
        daemon.stop();
        let orphan =
            daemon.state().join("imports").join(larder_model::image_cache::CacheId::random().to_string());
        fs::write(&orphan, "x").unwrap();
        daemon.restart();
        until(&daemon, "the orphan is left", || !orphan.exists());
        sent.assert_no_requests();
    });
}

#[case]
fn cancelled_and_deleted_like_any_build() {
    isolated(&[], || {
        let sent = Upload::random(6);
        let bytes = sent.bytes("oci-archive");
        let daemon = Daemon::start(&[A], &format!("{ROOMY}caches.max_concurrent_builds = 1\n"));
        let order = |name: &str| {
            let answer = post(&daemon, A, &sent.query(name), &[], &bytes).expect(201);
            answer["image_cache"]["id"].as_str().unwrap().to_owned()
        };
        let mut cancelled = 0;
        for number in 0..4 {
            let id = order(&format!("cancel-{number}"));
            let path = format!("/larder/v1/caches/{id}/cancel");
            cancelled += usize::from(daemon.ask(A, "POST", &path, None).0.status == 202);
            let id = order(&format!("delete-{number}"));
            daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{id}"), None).expect(202);
        }
        assert!(cancelled > 0);
        until(&daemon, "archives are left", || files(&daemon.state().join("imports")) == 0);
        let last = order("last");
        daemon.settle(A, &last, "Available", LIMIT);
    });
}

#[case]
fn tenants_and_keys() {
    isolated(&[], || {
        let sent = Upload::random(2);
        let (bytes, other) = (sent.bytes("oci-archive"), sent.bytes("docker-archive"));
        let daemon = Daemon::start(&[A, B], &format!("{ROOMY}caches.max_per_tenant = 2\n"));
        let key = [("Idempotency-Key", "k-1")];
        let first = post(&daemon, A, &sent.query("web"), &key, &bytes).expect(201);
        let id = first["image_cache"]["id"].as_str().unwrap();
        daemon.settle(A, id, "Available", LIMIT);
        assert_eq!(post(&daemon, A, &sent.query("web"), &key, &bytes).expect(201), first);
        let reused = post(&daemon, A, &sent.query("web"), &key, &other).expect(400);
        assert_eq!(reused["errorCode"], "CCE.01400103");
        let taken = post(&daemon, A, &sent.query("web"), &[], &bytes).expect(409);
        assert_eq!(taken["errorCode"], "CCE.01409001");
        until(&daemon, "an archive is left", || files(&daemon.state().join("imports")) == 0);

        // Another tenant cannot see it, can use the same name, and reuses none of its layers.
        let path = format!("/larder/v1/caches/{id}");
        daemon.ask(B, "GET", &path, None).expect(404);
        let of_b = post(&daemon, B, &sent.query("web"), &key, &bytes).expect(201);
        let of_b = of_b["image_cache"]["id"].as_str().unwrap();
        daemon.settle(B, of_b, "Available", LIMIT);
        daemon.ask(A, "GET", &format!("/larder/v1/caches/{of_b}"), None).expect(404);
        let shown = daemon.ask(B, "GET", &format!("/larder/v1/caches/{of_b}"), None).expect(200);
        for layer in shown["details"]["layers"].as_array().unwrap() {
            assert_eq!(layer["origin"], "fetched", "{shown}");
        }
        let list = daemon.ask(B, "GET", "/v5/imagecaches", None).expect(200);
        assert_eq!(list["image_caches"].as_array().unwrap().len(), 1);
        post(&daemon, A, &sent.query("web-2"), &[], &bytes).expect(201);
        let quota = post(&daemon, A, &sent.query("web-3"), &[], &bytes).expect(403);
        assert_eq!(quota["errorCode"], "CCE.01403101");
        // The client reports the refusal even if it has much more to send than the daemon reads.
        let large = sent.served.beside("large");
        fs::write(&large, &bytes).unwrap();
        fs::File::options().write(true).open(&large).unwrap().set_len(19 << 30).unwrap();
        for (tenant, code, told) in [(A, 73, "is taken"), (Tenant("stranger"), 77, "token is not valid")] {
            let output = run_within(&mut import(&daemon, tenant, "web", &large), Duration::from_secs(60));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(code) && said.contains(told), "{said}");
        }
    });
}
