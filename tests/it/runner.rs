//! Builders as children of a daemon: the real binary, and programs that imitate or break it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chrono::Utc;
use larder::caches::record::RequestOrigin;
use larder::caches::runner::child::{ChildRunner, Settings, clear_work};
use larder::caches::runner::{Ended, Runner as _, RunnerJob};
use larder::config::Config;
use larder::config::caches::CacheVolumeKind;
use larder::config::log::Format;
use larder_model::class::Class;
use larder_model::event::{Event, Line, Outcome, Status};
use larder_model::image_cache::CacheId;
use larder_model::job::Job;
use larder_model::size::{ByteSize, VolumeSize};
use larder_model::sizing::Sizing;
use larder_sys::cgroup::Cgroups;
use larder_testing::image::{Format as ImageFormat, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Auth, Fault};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::harness::served::{Served, cache, descendants, random};
use crate::harness::{Need, isolated, larder, succeed};

const PASSWORD: &str = "swordfish-9c1";
const TIMEOUT: Duration = Duration::from_secs(30);

fn image(layers: u64) -> Image {
    let layer =
        |seed| Layer::from(LayerBuilder::new().file(format!("f-{seed}"), random(seed, 50_000)).gzip());
    Image::builder(ImageFormat::Oci).layers((0..layers).map(layer)).build()
}

/// A host with a runner, a directory of secrets, and a registry.
struct Host {
    served: Served,
    settings: Settings,
    config: Config,
    runtime: Runtime,
}

impl Host {
    fn new(image: Image) -> Self {
        let served = Served::new([image]);
        let mut settings = Settings::of_this_process(served.beside("work"), "debug".into(), Format::Text);
        settings.program = env!("CARGO_BIN_EXE_larder").into();
        settings.cgroups = Arc::new(Cgroups::none("not in this test"));
        fs::create_dir_all(served.beside("share/volumes")).unwrap();
        let mut config = Config::default();
        // Builders on disks consist of two processes, and have tests in tests/privileged.
        config.caches.volume_kind = CacheVolumeKind::Directory;
        config.secrets.dir = served.beside("secrets");
        (config.registry.retries, config.registry.backoff_max_seconds) = (2, 1);
        config.registry.stall_timeout_seconds = 1;
        Host { served, settings, config, runtime: Runtime::new().unwrap() }
    }

    /// Creates a host whose `larder` is a shell script.
    fn with_program(script: &str) -> Self {
        let mut host = Host::new(image(1));
        host.settings.program = host.served.beside("program");
        fs::write(&host.settings.program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&host.settings.program, fs::Permissions::from_mode(0o755)).unwrap();
        host.settings.grace = Duration::from_millis(300);
        host
    }

    fn secret(&self, name: &str, content: &str) {
        let dir = self.config.secrets.dir.join("team").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(".dockerconfigjson"), content).unwrap();
    }

    fn auths(&self) -> String {
        let auth = BASE64_STANDARD.encode(format!("user:{PASSWORD}"));
        json!({"auths": {self.served.registry.host(): {"auth": auth}}}).to_string()
    }

    fn private(&self) {
        self.served.registry.require(Auth::Basic(vec![("user".into(), PASSWORD.into())]));
    }

    fn job(&self, pull_secrets: &[&str]) -> Job {
        let job = json!({
            "images": self.served.references(), "size": ByteSize(64 << 20), "sizing": Sizing::Warn,
            "pull_secrets": pull_secrets,
        });
        Job::parse(job.to_string().as_bytes()).unwrap()
    }

    fn order(&self, pull_secrets: &[&str], unusable: &[&str]) -> RunnerJob {
        RunnerJob {
            tenant: "team".parse().unwrap(),
            id: CacheId::random(),
            generation: 1,
            ordered_by: RequestOrigin::Api,
            job: self.job(pull_secrets),
            unusable_secrets: unusable.iter().map(|text| (*text).to_owned()).collect(),
            volume: self.volume(),
            share: self.served.beside("share"),
        }
    }

    fn volume(&self) -> PathBuf {
        self.served.beside("share/volumes/one")
    }

    fn runner(&self) -> ChildRunner {
        ChildRunner::new(self.settings.clone(), &self.config).unwrap()
    }

    /// Builds to the end, and runs `meanwhile` at the same time.
    fn build(&self, order: RunnerJob, meanwhile: impl FnOnce(&CancellationToken)) -> (Ended, Vec<Line>) {
        let (sender, mut lines) = mpsc::channel(16);
        let (runner, stop) = (self.runner(), CancellationToken::new());
        let ended = std::thread::scope(|scope| {
            let asked = stop.clone();
            let building = scope.spawn(move || {
                let collect = async move {
                    let mut all = Vec::new();
                    while let Some(line) = lines.recv().await {
                        all.push(line);
                    }
                    all
                };
                let both = async { tokio::join!(runner.build(order, sender, asked), collect) };
                self.runtime.block_on(async { tokio::time::timeout(TIMEOUT, both).await.unwrap() })
            });
            meanwhile(&stop);
            building.join().unwrap()
        });
        assert_eq!(fs::read_dir(&self.settings.work).unwrap().count(), 0, "a work directory is left");
        ended
    }

    fn result(&self, order: RunnerJob) -> Outcome {
        match self.build(order, |_| ()) {
            (Ended::Result(outcome), _) => outcome,
            (other, _) => panic!("{other:?}"),
        }
    }

    fn died(&self) -> String {
        match self.build(self.order(&[], &[]), |_| ()) {
            (Ended::Died(how), _) => how,
            (other, _) => panic!("{other:?}"),
        }
    }

    /// Stalls the build at its last layer. Returns the number of bytes before it.
    fn stall_at_the_last_layer(&self) -> usize {
        let layers = &self.served.images[0].layers;
        let digest = layers.last().unwrap().digest.clone();
        // For every retry.
        self.served.registry.fault(Fault::StallAt { digest, offsets: vec![10_000, 11_000, 12_000, 13_000] });
        layers[..layers.len() - 1].iter().map(|layer| layer.blob.len()).sum()
    }

    /// Waits until the builder has committed all layers but the last. Returns its process.
    fn stalled(&self) -> Pid {
        let journal = self.volume().join(".larder/journal");
        let layers = self.served.images[0].layers.len();
        until(|| {
            let text = fs::read_to_string(&journal).unwrap_or_default();
            text.matches("\"committed\"").count() == layers - 1
        });
        let process = || process_of(&self.volume());
        until(|| process().is_some());
        process().unwrap()
    }
}

fn until(ready: impl Fn() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < TIMEOUT, "timeout");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the builder of the volume: the `larder` process that this process started with the volume on its
/// command line. Its children, and those of a killed builder that are about to end, have the same arguments.
fn process_of(volume: &Path) -> Option<Pid> {
    let volume = volume.to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let pid = pids.find(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = format!("PPid:\t{}\n", std::process::id());
        line.starts_with(b"larder\0")
            && String::from_utf8_lossy(&line).contains(volume)
            && status.contains(&parent)
    });
    pid.map(Pid::from_raw)
}

#[case]
fn a_private_image_is_sealed_and_no_secret_shows() {
    isolated(&[], || {
        let host = Host::new(image(3));
        host.private();
        host.secret("good", &host.auths());
        host.stall_at_the_last_layer();
        let order = host.order(&["team:good"], &["nonsense"]);
        let work = host.settings.work.join(order.id.to_string());
        let (ended, lines) = host.build(order, |_| {
            let pid = host.stalled();
            let all: Vec<i32> = [vec![pid.as_raw()], descendants(pid.as_raw())].concat();
            let confined = all.iter().filter(|pid| {
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
                status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n")
            });
            assert_eq!(confined.count(), 2, "the fetcher and the extractor");
            for (pid, file) in all.iter().flat_map(|pid| [(pid, "environ"), (pid, "cmdline")]) {
                let text = fs::read(PathBuf::from(format!("/proc/{pid}")).join(file)).unwrap();
                let text = String::from_utf8_lossy(&text).into_owned();
                let encoded = BASE64_STANDARD.encode(format!("user:{PASSWORD}"));
                assert!(!text.is_empty() && !text.contains(PASSWORD) && !text.contains(&encoded), "{text}");
                assert!(!text.contains("HOME="), "{text}");
            }
            let secret = fs::read_to_string(work.join("secrets/team/good/.dockerconfigjson")).unwrap();
            assert_eq!(secret, host.auths());
            host.served.registry.heal();
        });
        let Ended::Result(outcome) = ended else { panic!("{ended:?}") };
        assert_eq!(outcome.status, Status::Ok, "{outcome:?}");
        assert_eq!(outcome.digest, Some(cache(&host.volume()).digest));
        assert!(matches!(lines[0].event, Event::Started { .. }));
        assert!(matches!(&lines.last().unwrap().event, Event::Result(last) if last.digest == outcome.digest));
        let committed = lines.iter().filter(|line| matches!(line.event, Event::LayerCommitted { .. }));
        assert_eq!(committed.count(), 3);
        succeed(larder().arg("verify").arg(host.volume()));
        assert!(!lines.iter().any(|line| serde_json::to_string(line).unwrap().contains(PASSWORD)));
    });
}

#[case]
fn secrets_without_a_credential_give_the_same_message() {
    isolated(&[], || {
        let host = Host::new(image(1));
        host.private();
        host.secret("broken", "{");
        host.secret("theirs", &host.auths());
        // Unknown; malformed content; another tenant's, although it would give access; an invalid name.
        let kinds: [(&[&str], &[&str], &str); 4] = [
            (&["team:missing"], &[], "team:missing"),
            (&["team:broken"], &[], "team:broken"),
            (&[], &["team:theirs"], "team:theirs"),
            (&[], &["no\nname"], "no\\u{a}name"),
        ];
        let runner = host.runner();
        let mut said = Vec::new();
        for (usable, unusable, name) in kinds {
            let outcome = host.result(host.order(usable, unusable));
            assert_eq!((outcome.class, outcome.exit_code), (Some(Class::Denied), 77), "{outcome:?}");
            let texts = [&outcome.message, &outcome.failures[0].message];
            let plan = runner.plan("team".parse().unwrap(), RequestOrigin::Api, host.job(usable), vec![]);
            let of_plan = host.runtime.block_on(plan).unwrap_err();
            assert_eq!(of_plan[0].message.contains(name), !usable.is_empty(), "{of_plan:?}");
            assert!(
                texts.iter().all(|text| text.ends_with(&format!("in the pull secret {name})"))),
                "{texts:?}"
            );
            said.push(texts.map(|text| text.replace(name, "NAME")));
        }
        assert!(said.iter().all(|texts| *texts == said[0]), "{said:#?}");

        // The message is independent of the order. A public image needs no secret.
        let outcome = host.result(host.order(&["team:missing"], &["b:b", "a:a"]));
        assert!(
            outcome.message.ends_with("in the pull secret a:a, b:b, team:missing)"),
            "{}",
            outcome.message
        );
        let outcome = host.result(host.order(&[], &[]));
        assert!(!outcome.message.contains("in the pull secret"), "{}", outcome.message);
        let public = Host::new(image(1));
        assert_eq!(public.result(public.order(&["team:missing"], &["x"])).status, Status::Ok);
    });
}

#[case]
fn what_is_stopped_can_be_resumed() {
    isolated(&[], || {
        let host = Host::new(image(4));
        host.stall_at_the_last_layer();
        let (ended, _) = host.build(host.order(&[], &[]), |stop| {
            host.stalled();
            stop.cancel();
        });
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");
        host.served.registry.heal();
        host.served.registry.forget();
        assert_eq!(host.result(host.order(&[], &[])).status, Status::Ok);
        for layer in &host.served.images[0].layers[..3] {
            assert_eq!(host.served.registry.served(&layer.digest), 0, "the layer was fetched again");
        }
        let (ended, lines) = host.build_stopped();
        assert!(matches!(ended, Ended::Stopped) && lines.is_empty());
    });
}

impl Host {
    /// Runs a build that is stopped before it begins.
    fn build_stopped(&self) -> (Ended, Vec<Line>) {
        let (sender, mut lines) = mpsc::channel(16);
        let stop = CancellationToken::new();
        stop.cancel();
        let ended = self.runtime.block_on(self.runner().build(self.order(&[], &[]), sender, stop));
        (ended, std::iter::from_fn(|| lines.try_recv().ok()).collect())
    }
}

#[case]
fn a_builder_that_is_killed_has_died() {
    isolated(&[], || {
        let host = Host::new(image(2));
        for (signal, said) in
            [(Signal::SIGKILL, "was killed by signal 9"), (Signal::SIGTERM, "another process")]
        {
            host.stall_at_the_last_layer();
            let (ended, _) = host.build(host.order(&[], &[]), |_| kill(host.stalled(), signal).unwrap());
            let Ended::Died(how) = ended else { panic!("{ended:?}") };
            assert!(how.contains(said), "{how}");
            host.served.registry.heal();
        }
        assert_eq!(host.result(host.order(&[], &[])).status, Status::Ok);
    });
}

#[case]
fn a_builder_that_takes_too_much_memory_is_killed() {
    isolated(&[Need::MemoryCgroup], || {
        let mut host = Host::new(image(2));
        host.settings.cgroups = Arc::new(Cgroups::of_this_process());
        assert!(host.settings.cgroups.limits(), "{}", host.settings.cgroups);
        host.config.caches.build_memory = ByteSize(1 << 20);
        let how = host.died();
        assert!(how.contains("killed by signal 9; out of memory: its limit is 1 MiB"), "{how}");
        // The same in a group with enough memory.
        host.config.caches.build_memory = ByteSize(256 << 20);
        assert_eq!(host.result(host.order(&[], &[])).status, Status::Ok);
    });
}

#[case]
fn a_program_that_is_no_builder_is_killed() {
    isolated(&[], || {
        for (script, said) in [
            ("echo '{\"v\":1'; exec sleep 1000", "a line that is not an event: {\"v\":1"),
            ("exec sleep 1000 & echo; wait", "a line that is not an event"),
            ("exec tr '\\0' a < /dev/zero", "a line of more than 1048576 bytes"),
            ("exit 0", "ended with exit code 0; it returned no result"),
            ("cat >&2; exit 3", "ended with exit code 3; its last output: {\"version\":1"),
        ] {
            let how = Host::with_program(script).died();
            assert!(how.contains(said), "{script}: {how}");
        }
        let mut missing = Host::new(image(1));
        missing.settings.program = "/nonexistent/larder".into();
        let (ended, _) = missing.build(missing.order(&[], &[]), |_| ());
        assert!(matches!(&ended, Ended::NotStarted(why) if why.contains("/nonexistent/larder")), "{ended:?}");
    });
}

#[case]
fn a_builder_that_does_not_obey_is_killed() {
    isolated(&[], || {
        let host =
            Host::with_program("trap '' TERM; echo $$ > \"$(dirname \"$0\")/pid\"; sleep 1000 & wait; wait");
        let pid = host.served.beside("pid");
        let running = || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n'));
        let (ended, _) = host.build(host.order(&[], &[]), |stop| {
            until(running);
            stop.cancel();
        });
        assert!(matches!(ended, Ended::Stopped), "{ended:?}");

        let mut order = host.order(&[], &[]);
        order.job.deadline = Some(Utc::now());
        let (ended, _) = host.build(order, |_| ());
        assert!(matches!(&ended, Ended::Died(how) if how.contains("did not end in time")), "{ended:?}");

        // Its children are killed with it.
        let group = fs::read_to_string(&pid).unwrap().trim().parse::<i32>().unwrap();
        until(|| nix::sys::signal::killpg(Pid::from_raw(group), None).is_err());

        // Nothing can follow a result.
        let result = json!({"v": 1, "time": "2026-01-01T00:00:00Z", "event": "result", "status": "ok",
            "exit_code": 0, "message": "", "elapsed_ms": 0});
        let how = Host::with_program(&format!("echo '{result}'; exec sleep 1000")).died();
        assert!(how.contains("did not end after its result"), "{how}");
        let how = Host::with_program(&format!("echo '{result}'; exit 1")).died();
        assert!(how.contains("its result was for exit code 0"), "{how}");
    });
}

#[case]
fn plans_are_reports_or_failures() {
    isolated(&[], || {
        let host = Host::new(image(2));
        let plan = |host: &Host, job: Job| {
            let planned = host.runtime.block_on(host.runner().plan(
                "team".parse().unwrap(),
                RequestOrigin::Api,
                job,
                vec!["x".into()],
            ));
            assert_eq!(fs::read_dir(&host.settings.work).unwrap().count(), 0);
            planned
        };
        let mut job = host.job(&[]);
        let report = plan(&host, job.clone()).unwrap();
        assert_eq!((report.distinct_layers, report.fits), (2, Some(true)));
        assert_eq!(report.distinct_bytes, host.served.images[0].compressed_size() as u64);
        assert_eq!(host.served.registry.served(&host.served.images[0].layers[0].digest), 0);

        // A volume that is too small can still be planned.
        (job.size, job.sizing) = (Some(VolumeSize::Given(ByteSize(1))), Some(Sizing::Enforce));
        assert_eq!(plan(&host, job.clone()).unwrap().fits, Some(false));

        job.images = vec![format!("{}/none:1", host.served.registry.host()).parse().unwrap()];
        let failures = plan(&host, job.clone()).unwrap_err();
        assert_eq!((failures.len(), failures[0].class), (1, Class::NotFound));
        assert_eq!(failures[0].images, [job.images[0].given()]);
        assert!(failures[0].message.ends_with("in the pull secret x)"), "{failures:?}");

        for (script, said) in
            [("echo '{}'; echo why >&2", "its last output: why"), ("kill -9 $$", "signal 9")]
        {
            let failures = plan(&Host::with_program(script), job.clone()).unwrap_err();
            assert_eq!(failures[0].class, Class::Internal);
            assert!(failures[0].message.contains(said), "{failures:?}");
        }
        let failures = plan(&Host::with_program("exec cat /dev/zero"), job).unwrap_err();
        assert!(failures[0].message.contains("its output was invalid"), "{failures:?}");
    });
}

#[case]
fn a_new_daemon_finds_no_secrets_of_an_old_one() {
    isolated(&[], || {
        let host = Host::new(image(1));
        let left = host.settings.work.join("old/secrets");
        fs::create_dir_all(&left).unwrap();
        clear_work(&host.settings.work).unwrap();
        assert_eq!(fs::read_dir(&host.settings.work).unwrap().count(), 0);
        assert_eq!(fs::metadata(&host.settings.work).unwrap().permissions().mode() & 0o777, 0o700);
    });
}
