//! Event streams of an image cache: for programs, for people, and across a restart.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Fault, Registry};

use crate::harness::daemon::{Daemon, Tenant};
use crate::harness::served::random;
use crate::harness::{Need, isolated, larder};

const A: Tenant = Tenant("team-a");
const LIMIT: Duration = Duration::from_secs(60);
/// Settings that retry a stalled registry soon, and often enough for a test.
const PATIENT: &str = "\
caches.capacity = '1TiB'
registry.stall_timeout_seconds = 2
registry.retries = 20
registry.backoff_max_seconds = 1
log.level = 'debug'
";

/// A registry in which the only layer of `team/app:1` stalls half way until it is healed, and the order for
/// it.
struct StalledBuild {
    registry: Registry,
    daemon: Daemon,
    id: String,
}

impl StalledBuild {
    fn new() -> Self {
        let mut registry = Registry::spawn();
        let layer = Layer::from(LayerBuilder::new().file("f", random(1, 4 << 20)).gzip());
        let image = Image::builder(Format::Oci).layer(layer).build();
        image.push(&mut registry, "team/app", "1").unwrap();
        let blob = &image.layers[0];
        let stalled = (0..40).map(|_| blob.blob.len() as u64 / 2).collect();
        registry.fault(Fault::StallAt { digest: blob.digest.clone(), offsets: stalled });
        let daemon = Daemon::start(&[A], PATIENT);
        let id = daemon.order(A, "web", &[format!("{}/team/app:1", registry.host())]);
        StalledBuild { registry, daemon, id }
    }

    /// Returns `larder cache` with the token of the tenant.
    fn cache(&self, arguments: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec {:?} cache {arguments}", larder().get_program())]);
        command.env("LARDER_HOST", self.daemon.endpoint()).env("LARDER_TOKEN", A.token());
        command
    }

    fn watch(&self, after: &str) -> Stream {
        let mut stream = TcpStream::connect(self.daemon.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let (path, token) = (format!("/larder/v1/caches/{}/events", self.id), A.token());
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\nX-Auth-Token: {token}\r\n{after}\r\n").unwrap();
        Stream { stream, told: String::new() }
    }
}

struct Stream {
    stream: TcpStream,
    told: String,
}

impl Stream {
    /// Reads events up to the event `end`; `None` reads to the end of the stream.
    fn until(&mut self, end: Option<&str>) -> &str {
        let deadline = Instant::now() + LIMIT;
        let mut buffer = [0; 4096];
        while !end.is_some_and(|end| self.told.contains(end)) {
            assert!(Instant::now() < deadline, "no event {end:?}: {}", self.told);
            match self.stream.read(&mut buffer) {
                Ok(0) if end.is_none() => break,
                Ok(0) => panic!("the stream ended before {end:?}: {}", self.told),
                Ok(read) => self.told.push_str(std::str::from_utf8(&buffer[..read]).unwrap()),
                Err(_) => {}
            }
        }
        &self.told
    }
}

/// Waits until a command ends by itself, and returns its output.
fn ends(child: Child) -> (bool, String) {
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[case]
fn progress_is_reported_during_a_build() {
    isolated(&[], || {
        let half = StalledBuild::new();
        let mut stream = half.watch("");
        let told = stream.until(Some("\"event\":\"layer_progress\""));
        assert!(told.contains("event: build\n") && told.contains("id: 1\n"), "{told}");
        let cache = half.daemon.ask(A, "GET", &format!("/v5/imagecaches/{}", half.id), None).expect(200);
        assert_eq!(cache["image_cache"]["status"], "Creating");
        half.registry.heal();
        let told = stream.until(None);
        assert!(told.contains("\"event\":\"layer_committed\""), "{told}");
        assert!(told.contains("\"status\":\"Available\""), "{told}");
        // A client that reconnects receives the missed events and the last one.
        let mut again = half.watch("Last-Event-ID: 2\r\n");
        let told = again.until(None);
        assert!(!told.contains("\"sequence\":2,") && told.contains("\"sequence\":3,"), "{told}");
    });
}

#[case]
fn progress_bars_include_layers_begun_before() {
    isolated(&[Need::Program("script")], || {
        let half = StalledBuild::new();
        half.watch("").until(Some("\"event\":\"layer_progress\""));
        // A second client, whose wait starts when half of the layer is there.
        let wait = half.cache("wait web");
        let mut terminal = Command::new("script");
        terminal.args(["--quiet", "--return", "--flush", "--command"]);
        terminal.arg(format!("stty cols 120; {:?} cache wait web", larder().get_program())).arg("/dev/null");
        terminal.env("TERM", "xterm").envs(wait.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = terminal.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut printed = String::new();
        let mut buffer = [0; 4096];
        let mut terminal = child.stdout.take().unwrap();
        let deadline = Instant::now() + LIMIT;
        let half_way = |text: &str| {
            let total = text.rsplit("total ").next().unwrap_or_default();
            total.contains("2.11 MiB / 4.22 MiB")
        };
        while !half_way(&printed) {
            assert!(Instant::now() < deadline, "no bar at half: {:.2000?}", printed);
            let read = terminal.read(&mut buffer).unwrap();
            assert!(read > 0, "the command ended: {printed:?}");
            printed.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        half.registry.heal();
        terminal.read_to_string(&mut printed).unwrap();
        assert!(child.wait().unwrap().success(), "{printed:?}");
        assert!(printed.contains("Available"), "{printed:?}");
    });
}

#[case]
fn waits_and_watches_survive_a_restart() {
    isolated(&[], || {
        let mut half = StalledBuild::new();
        let commands = ["wait web", "events web", "events web --json"];
        half.watch("").until(Some("\"event\":\"layer_progress\""));
        let waiting = commands.map(|arguments| piped(&mut half.cache(arguments)));
        // Until each client has received a response: the test must not hang on a daemon that never answers.
        let deadline = Instant::now() + LIMIT;
        let followed = "route=\"/larder/v1/caches/{id}/events\" status=200";
        while half.daemon.log().matches(followed).count() < 1 + commands.len() {
            assert!(Instant::now() < deadline, "{}", half.daemon.log());
        }
        half.daemon.stop();
        half.registry.heal();
        half.daemon.restart();
        half.daemon.settle(A, &half.id, "Available", LIMIT);
        for (child, arguments) in waiting.into_iter().zip(commands) {
            let (good, printed) = ends(child);
            assert!(good && printed.contains("Available"), "{arguments}: {printed}");
            if arguments != "wait web" {
                // An attempt that a stop interrupted does not count as failed: its continuation has the same
                // number, and is reported once.
                let told =
                    ["ordered", "attempt 1 began", "sealed: "].map(|text| printed.matches(text).count());
                assert_eq!(told, [1, 1, 1], "{printed}");
            }
        }
    });
}
