//! The pages of the daemon, over HTTP as a browser sends it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use larder_model::digest::Digest;
use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};
use nix::sys::signal::Signal;

use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::http::{Response, send};
use crate::harness::{isolated, larder, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
const LIMIT: Duration = Duration::from_secs(120);
const FORM: (&str, &str) = ("Content-Type", "application/x-www-form-urlencoded");
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
    form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A browser with the cookie of a session.
struct Browser<'a> {
    daemon: &'a Daemon,
    cookie: String,
}

impl<'a> Browser<'a> {
    fn sign_in(daemon: &'a Daemon, tenant: Tenant) -> Self {
        let answer = sign_in(daemon, &format!("token={}", tenant.token()));
        assert_eq!((answer.status, answer.header("location")), (303, Some("/ui/")), "{}", text(&answer));
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        Browser { daemon, cookie }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut all = vec![("Cookie", self.cookie.as_str())];
        all.extend(headers);
        send(self.daemon.address(), method, path, &all, body.as_bytes()).unwrap()
    }

    /// Returns a page.
    fn get(&self, path: &str) -> String {
        let answer = self.send("GET", path, &[], "");
        assert_eq!(answer.status, 200, "{path}: {}", text(&answer));
        assert_eq!(answer.header("content-security-policy"), Some(POLICY));
        text(&answer)
    }

    fn token(&self) -> String {
        let page = self.get("/ui/create");
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }

    /// Sends a form with the token of the session.
    fn post(&self, path: &str, fields: &str) -> Response {
        let body = format!("csrf={}&{fields}", self.token());
        self.send("POST", path, &[FORM, ("Sec-Fetch-Site", "same-origin")], &body)
    }

    fn create(&self, name: &str, image: &str) -> String {
        let answer = self.post("/ui/create", &format!("name={name}&images={image}&cluster=here"));
        assert_eq!(answer.status, 303, "{}", text(&answer));
        answer.header("location").unwrap().strip_prefix("/ui/caches/").unwrap().to_owned()
    }
}

fn sign_in(daemon: &Daemon, body: &str) -> Response {
    send(daemon.address(), "POST", "/ui/sign-in", &[FORM], body.as_bytes()).unwrap()
}

fn text(answer: &Response) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

fn image() -> Image {
    Image::builder(Format::Oci)
        .layers([Layer::from(LayerBuilder::new().file("f", vec![7; 1 << 20]).gzip())])
        .build()
}

/// Waits until a page contains `wanted`.
fn until(browser: &Browser<'_>, path: &str, wanted: &str) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        let page = browser.get(path);
        if page.contains(wanted) {
            return page;
        }
        assert!(Instant::now() < deadline, "{wanted}: {page}\n{}", browser.daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[case]
fn a_session_needs_a_credential_of_the_api() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], ROOMY);
        let first = send(daemon.address(), "GET", "/ui/", &[], &[]).unwrap();
        assert_eq!((first.status, first.header("location")), (303, Some("/ui/sign-in")));
        let fragment = send(daemon.address(), "GET", "/ui/", &[("X-Larder-Fragment", "1")], &[]).unwrap();
        assert_eq!(fragment.status, 401);
        let page = send(daemon.address(), "GET", "/ui/sign-in", &[], &[]).unwrap();
        assert!(page.status == 200 && text(&page).contains("Access key"), "{}", text(&page));
        for (name, value) in [
            ("content-security-policy", POLICY),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(page.header(name), Some(value), "{name}");
        }
        for wrong in
            ["token=wrong", "access=AK-team-a&secret=wrong", "access=none&secret=secret-key-of-team-a"]
        {
            let answer = sign_in(&daemon, wrong);
            assert_eq!((answer.status, answer.header("set-cookie")), (401, None), "{wrong}");
            assert!(text(&answer).contains("is not valid"), "{}", text(&answer));
            assert_eq!(answer.header("www-authenticate"), None);
        }
        let right = sign_in(&daemon, "access=AK-team-a&secret=secret-key-of-team-a");
        assert_eq!(right.status, 303);
        let cookie = right.header("set-cookie").unwrap();
        let (value, flags) = cookie.split_once("; ").unwrap();
        assert_eq!(
            (value.len(), flags),
            ("larder_session=".len() + 64, "Path=/ui; HttpOnly; SameSite=Strict")
        );
        let foreign = [FORM, ("Origin", "http://evil.example")];
        let body = format!("token={}", A.token());
        let answer = send(daemon.address(), "POST", "/ui/sign-in", &foreign, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 403);

        let browser = Browser::sign_in(&daemon, A);
        assert!(browser.get("/ui/").contains("There are no image caches"));
        let other = Browser::sign_in(&daemon, A);
        assert_eq!(browser.post("/ui/sign-out", "").header("location"), Some("/ui/sign-in"));
        assert_eq!(browser.send("GET", "/ui/", &[], "").status, 303);
        // A session ends when the configuration no longer has its credential.
        other.get("/ui/");
        let config = std::fs::read_to_string(daemon.config()).unwrap();
        let hash = Digest::sha256(A.token().as_bytes());
        std::fs::write(daemon.config(), config.replace(hash.hex(), &"0".repeat(64))).unwrap();
        daemon.signal(Signal::SIGHUP);
        let deadline = Instant::now() + LIMIT;
        while other.send("GET", "/ui/", &[], "").status != 303 {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = daemon.log();
        assert!(!log.contains(&A.token()) && !log.contains(value), "{log}");
    });
}

#[case]
fn caches_are_created_cancelled_and_deleted_by_forms() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        image().push(&mut registry, "team/app", "1").unwrap();
        let name = format!("{}/team/app:1", registry.host());
        let daemon = Daemon::start(&[A, B], ROOMY);
        let (a, b) = (Browser::sign_in(&daemon, A), Browser::sign_in(&daemon, B));

        let fields = format!("images={name}&cluster=here");
        let plan = a.post("/ui/plan", &fields);
        assert!(plan.status == 200 && text(&plan).contains("It fits."), "{}", text(&plan));
        let body = format!("csrf={}&{fields}", a.token());
        let plan = a.send("POST", "/ui/plan", &[FORM, ("X-Larder-Fragment", "1")], &body);
        assert!(text(&plan).starts_with("<h2>Plan"), "{}", text(&plan));
        let refused = a.post("/ui/create", "name=WEB&images=a:1&cluster=here");
        assert!(refused.status == 400 && text(&refused).contains("value=\"WEB\""), "{}", text(&refused));

        let id = a.create("web", &name);
        let path = format!("/ui/caches/{id}");
        let page = until(&a, &path, "s-available");
        for part in ["<svg class=\"waterfall\"", "critical path", "larder attach web", &name, "sealed"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(a.get("/ui/?q=WEB&status=Available&sort=used&order=desc").contains(&path));
        assert!(a.get("/ui/?status=Failed").contains("No image cache matches"));
        let capacity = a.get("/ui/capacity");
        assert!(
            capacity.contains("20 GiB reserved") && capacity.contains("Layers of it alone"),
            "{capacity}"
        );
        let plan = a.post("/ui/plan", &fields);
        assert!(text(&plan).contains("To fetch</dt><dd>0 B"), "{}", text(&plan));

        // Another tenant sees and changes nothing.
        assert!(!b.get("/ui/").contains("web") && !b.get("/ui/capacity").contains("web"));
        for other in [path.clone(), format!("{path}?tenant=team-a"), format!("{path}/delete")] {
            assert_eq!(b.send("GET", &other, &[], "").status, 404, "{other}");
        }
        for action in ["cancel", "refresh", "delete"] {
            assert_eq!(b.post(&format!("{path}/{action}"), "").status, 404, "{action}");
        }

        // A form needs the token of its own session, and must not come from another site.
        let delete = format!("{path}/delete");
        let token = a.token();
        for (headers, body) in [
            (vec![FORM], String::new()),
            (vec![FORM], format!("csrf={}", b.token())),
            (vec![FORM, ("Origin", "http://evil.example")], format!("csrf={token}")),
            (vec![FORM, ("Sec-Fetch-Site", "cross-site")], format!("csrf={token}")),
        ] {
            let answer = a.send("POST", &delete, &headers, &body);
            assert_eq!(answer.status, 403, "{headers:?} {body}");
        }
        assert!(a.get("/ui/").contains(&path));

        let file = daemon.state().join("report.html");
        let mut report = larder();
        report.args(["cache", "report", "web", "--html"]).arg(&file);
        succeed(report.env("LARDER_HOST", daemon.endpoint()).env("LARDER_TOKEN", A.token()));
        let report = std::fs::read_to_string(&file).unwrap();
        assert!(report.contains("<svg") && report.contains(&name), "{report}");

        let volume = daemon.state().join("volume");
        let mut build = larder();
        build.args(["build", "--size", "64MiB", "--timeline"]).arg(daemon.state().join("build.html"));
        succeed(build.arg("--volume").arg(volume).arg(&name));
        let built = std::fs::read_to_string(daemon.state().join("build.html")).unwrap();
        assert!(built.contains("<svg") && built.contains("sealed") && built.contains(&name), "{built}");

        assert!(a.get(&delete).contains("Delete web?"));
        assert_eq!(a.post(&delete, "").header("location"), Some("/ui/"));
        until(&a, "/ui/", "There are no image caches");

        registry.fault(Fault::DribbleManifests(Duration::from_secs(5)));
        let slow = a.create("slow", &name);
        let path = format!("/ui/caches/{slow}");
        until(&a, &path, "Cancel the build");
        assert_eq!(a.post(&format!("{path}/cancel"), "").status, 303);
        assert!(until(&a, &path, "s-failed").contains("cancelled by request"));
        let again = a.post(&format!("{path}/cancel"), "");
        assert!(again.status == 409 && text(&again).contains("role=\"alert\""), "{}", text(&again));
    });
}

#[case]
fn the_form_shows_only_a_cluster_that_the_tenant_has_used() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        image().push(&mut registry, "team/app", "1").unwrap();
        let name = format!("{}/team/app:1", registry.host());
        let daemon = Daemon::start(
            &[A, B],
            &format!("{ROOMY}[[cluster]]\nuid = 'first'\n[[cluster]]\nuid = 'here'\n"),
        );
        let (a, b) = (Browser::sign_in(&daemon, A), Browser::sign_in(&daemon, B));
        let form = a.get("/ui/create");
        assert!(form.contains("name=\"cluster\" value=\"\" required"), "{form}");
        for path in ["/ui/create", "/ui/plan"] {
            let refused = a.post(path, &format!("name=web&images={name}"));
            assert!(refused.status == 400 && text(&refused).contains("enter the UID"), "{}", text(&refused));
        }
        a.create("web", &name);
        assert!(a.get("/ui/create").contains("name=\"cluster\" value=\"here\""));
        for form in [a.get("/ui/create"), b.get("/ui/create")] {
            assert!(!form.contains("first"), "{form}");
        }
        assert!(!b.get("/ui/create").contains("here\""));
        let again = a.post("/ui/create", &format!("name=again&images={name}"));
        assert_eq!(again.status, 303, "{}", text(&again));
        let mut socket = UnixStream::connect(daemon.config().with_file_name("larder.sock")).unwrap();
        write!(socket, "GET /ui/create HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let form = std::io::read_to_string(socket).unwrap();
        assert!(form.contains("name=\"cluster\" value=\"first\""), "{form}");
    });
}

#[case]
fn a_stream_reports_changes_of_own_caches() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A, B], ROOMY);
        let a = Browser::sign_in(&daemon, A);
        let token = format!("X-Auth-Token: {}\r\n", A.token());
        let cookie = format!("Cookie: {}\r\n", a.cookie);
        let streams = [("/ui/events", cookie), ("/larder/v1/events", token)];
        let streams = streams.map(|(path, header)| {
            let mut stream = TcpStream::connect(daemon.address()).unwrap();
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n").unwrap();
            BufReader::new(stream).lines().map_while(Result::ok)
        });
        let other = daemon.order(B, "other", &["127.0.0.1:9/none:1".to_owned()]);
        let own = daemon.order(A, "own", &["127.0.0.1:9/none:1".to_owned()]);
        for mut lines in streams {
            assert!(lines.next().unwrap().ends_with("200 OK"));
            let mut seen = Vec::new();
            while !seen.last().is_some_and(|line: &String| line.starts_with("data:") && line.contains(&own)) {
                seen.push(lines.next().unwrap());
            }
            assert!(seen.contains(&"event: cache".to_owned()), "{seen:?}");
            daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{own}"), None);
            let removed = lines.by_ref().find(|line| line == "event: removed");
            assert!(removed.is_some() && lines.next().unwrap().contains(&own));
            assert!(!seen.iter().any(|line| line.contains(&other)), "{seen:?}");
        }
        let all = daemon.ask(A, "GET", "/larder/v1/events?tenants=all", None);
        assert_eq!(all.0.status, 403);
    });
}

#[case]
fn a_peer_of_the_socket_is_the_admin_under_a_name_of_this_host_only() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], ROOMY);
        daemon.order(A, "of-a", &["127.0.0.1:9/none:1".to_owned()]);
        let get_path = |path: &str, host: &str| {
            let mut stream = UnixStream::connect(daemon.config().with_file_name("larder.sock")).unwrap();
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").unwrap();
            std::io::read_to_string(stream).unwrap()
        };
        let get = |host: &str| get_path("/ui/", host);
        for local in ["localhost:8080", "127.0.0.1", "larder"] {
            let page = get(local);
            assert!(page.contains("200 OK") && page.contains("of-a") && page.contains("team-a"), "{page}");
            assert!(get_path("/v5/imagecaches", local).contains("200 OK"), "{local}");
        }
        for other in ["evil.example", "localhost.evil.example:80"] {
            assert!(get(other).contains("location: /ui/sign-in"), "{other}");
            // Neither can the script of another site use the API over a forwarded socket.
            assert!(get_path("/v5/imagecaches", other).contains("403 Forbidden"), "{other}");
        }
    });
}

#[case]
fn the_pages_are_small_and_can_be_turned_off() {
    isolated(&[], || {
        let daemon = Daemon::start(&[A], ROOMY);
        let a = Browser::sign_in(&daemon, A);
        let paths = [
            "/ui/",
            "/ui/create",
            "/ui/capacity",
            "/ui/sign-in",
            "/ui/style.css",
            "/ui/script.js",
            "/ui/icon.svg",
        ];
        let size: usize = paths.iter().map(|path| a.get(path).len()).sum();
        assert!(size < 100 << 10, "{size} bytes");
        for page in ["/ui/", "/ui/create", "/ui/sign-in"] {
            let page = a.get(page);
            for forbidden in [" style=", "onclick=", "<style", "//cdn", "https://"] {
                assert!(!page.contains(forbidden), "{forbidden}");
            }
        }
        assert_eq!(a.send("GET", "/ui/none", &[], "").status, 404);
        drop(daemon);
        let daemon = Daemon::start(&[A], &format!("{ROOMY}api.ui = false\n"));
        for path in ["/ui/", "/ui/sign-in", "/ui/style.css"] {
            assert_eq!(send(daemon.address(), "GET", path, &[], &[]).unwrap().status, 404, "{path}");
        }
        assert_eq!(daemon.ask(A, "GET", "/larder/v1/caches", None).0.status, 200);
    });
}
