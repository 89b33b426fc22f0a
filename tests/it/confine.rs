//! Builds in the sandbox: it supports everything that an image can need, and processes end with their
//! parents.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_testing::image::{self, Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::authority::Authority;
use crate::harness::layers::{Member, Node, Packing, layer};
use crate::harness::registry::{PASSWORD, Registry, USER};
use crate::harness::served::{Running, Served, descendants, random, until_gone};
use crate::harness::tree::{Kind, Tolerance, differences, scan};
use crate::harness::{Need, exits, isolated, larder, succeed};

const REGISTRY: Need = Need::Program("docker-registry");

/// CHOWN DAC_OVERRIDE FOWNER FSETID MKNOD SETFCAP, and SYS_ADMIN.
const KEPT: u64 = 0x8800_001b | 1 << 21;

/// Revision 2 with CAP_NET_BIND_SERVICE permitted and effective (linux/capability.h, vfs_cap_data).
const FILE_CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Returns an image with content that needs privileges, and with links between directories.
pub(crate) fn demanding() -> Image {
    let below = [
        Member::directory("emptied/").owner(5, 6),
        Member::file("emptied/a", "a"),
        Member::file("gone", "gone"),
        Member::directory("one/"),
        Member::file("one/original", "linked"),
    ];
    let above = [
        Member::whiteout("emptied/.wh..wh..opq"),
        Member::whiteout(".wh.gone"),
        Member::new("dev/null", Node::Character(1, 3)).mode(0o666),
        Member::new("run/fifo", Node::Fifo),
        Member::file("bin/ping", "ping").owner(1000, 1001).mode(0o4755),
        Member::file("bin/web", "web").mode(0o755).xattr("security.capability", &FILE_CAPABILITY),
        Member::directory("private/").owner(7, 7).mode(0o700),
        Member::file("private/x", "x").owner(7, 7).mode(0o400),
        Member::directory("two/"),
        Member::file("two/first", "first"),
        Member::hard_link("private/second", "two/first"),
        Member::hard_link("two/of-below", "one/original"),
    ];
    Image::builder(Format::Oci)
        .layers([image::busybox().unwrap(), layer(&below, Packing::Gzip), layer(&above, Packing::Zstd)])
        .build()
}

fn build(volume: &Path, reference: &str) -> Command {
    let mut larder = larder();
    larder.args(["build", "--size", "256MiB", reference, "--volume"]).arg(volume);
    larder
}

#[case]
fn a_confined_build_is_the_same_as_another() {
    isolated(&[REGISTRY, Need::Program("busybox")], || {
        let registry = Registry::open();
        let image = demanding();
        let reference = registry.push(&image, "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let (confined, free) = (dir.path().join("confined"), dir.path().join("free"));
        let result = dir.path().join("result");
        let said = succeed(
            build(&confined, &reference)
                .args(["--verify-after", "--nice", "7", "--output", "json", "--result-file"])
                .arg(&result),
        );
        assert!(!said.contains("Landlock"), "{said}");
        succeed(&mut build(&free, &reference));
        succeed(larder().arg("verify").arg(&confined));
        let diff_ids: Vec<Digest> = image.layers.iter().map(|layer| layer.diff_id.clone()).collect();
        for chain in ChainId::chain(&diff_ids) {
            let of = |volume: &Path| scan(&volume.join("overlay").join(chain.hex()).join("diff"));
            // A directory that no layer contains has no defined time.
            let tolerance = Tolerance { directory_times: true, ..Tolerance::default() };
            let mut free = of(&free);
            // The same applies to a whiteout.
            free.values_mut().filter(|e| e.kind == Kind::Character(0)).for_each(|e| e.mtime = None);
            let differ = differences(&free, &of(&confined), tolerance);
            assert!(differ.is_empty(), "{differ:#?}");
        }
        let cache = fs::read_to_string(confined.join("cache.json")).unwrap();
        assert!(!cache.contains("opaque_as_whiteouts"), "trusted attributes are written: {cache}");
        let line: serde_json::Value = serde_json::from_slice(&fs::read(&result).unwrap()).unwrap();
        assert_eq!(line["status"], "ok");
    });
}

#[case]
fn a_confined_build_speaks_tls_with_a_client_certificate() {
    isolated(&[REGISTRY, Need::Program("openssl")], || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let authority = Authority::new(path);
        authority.sign("server", "subjectAltName=IP:127.0.0.1");
        authority.sign("client", "extendedKeyUsage=clientAuth");
        let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
        let image = Image::builder(Format::Oci).layer(layer).build();
        let registry = Registry::with_tls(path, &image, "team/app", "1");
        let (reference, host) = (registry.reference("team/app:1"), registry.host());
        let at = |name: &str| path.join(name).display().to_string();
        let (ca, certificate, key) = (at("ca.pem"), at("client.pem"), at("client.key"));
        let certs = path.join("certs.d").join(&host);
        fs::create_dir_all(&certs).unwrap();
        let hosts = format!(
            "server = \"https://{host}\"\nca = \"{ca}\"\nclient = [[\"{certificate}\", \"{key}\"]]\n"
        );
        fs::write(certs.join("hosts.toml"), hosts).unwrap();
        for (name, config) in [
            ("certs-d", format!("[registry]\ncerts_d = \"{}\"\n", path.join("certs.d").display())),
            (
                "entry",
                format!(
                    "[[registry.host]]\nname = \"{host}\"\nca = [\"{ca}\"]\nclient_cert = \"{certificate}\"\n\
                     client_key = \"{key}\"\n"
                ),
            ),
        ] {
            let file = path.join(format!("{name}.toml"));
            fs::write(&file, config).unwrap();
            succeed(build(&path.join(name), &reference).arg("--config").arg(&file));
        }
    });
}

#[case]
fn a_confined_build_finds_names_and_asks_for_tokens() {
    isolated(&[REGISTRY, Need::Program("openssl")], || {
        let registry = Registry::with_tokens(Duration::from_secs(300));
        let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
        registry.push(&Image::builder(Format::Oci).layer(layer).build(), "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let host = registry.host().replace("127.0.0.1", "localhost");
        let secret = dir.path().join("secrets/team/pull");
        fs::create_dir_all(&secret).unwrap();
        let auth = BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
        fs::write(secret.join(".dockerconfigjson"), json!({"auths": {&host: {"auth": auth}}}).to_string())
            .unwrap();
        let mut build = build(&dir.path().join("volume"), &format!("{host}/team/app:1"));
        build.arg("--secrets").arg(dir.path().join("secrets")).args(["--pull-secret", "team:pull"]);
        // A credential helper that does not exist gives no credential.
        fs::write(dir.path().join("config.json"), r#"{"credsStore":"none"}"#).unwrap();
        succeed(build.env("DOCKER_CONFIG", dir.path()));
        assert!(registry.tokens_issued() > 0);
    });
}

/// Returns an image whose layer takes seconds at the rate that [`slow`] sets.
fn large() -> Image {
    let layer = Layer::from(LayerBuilder::new().file("large", random(1, 8 << 20)).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

const SLOW: [&str; 3] = ["--limit-rate", "256KiB/s", "--die-with-parent"];

#[case]
fn a_running_builder_has_few_rights() {
    isolated(&[], || {
        let served = Served::new([large()]);
        let volume = served.volume();
        let mut build = served.build(&volume, 256 << 20);
        for name in ["LARDER_TOKEN", "AWS_SECRET_ACCESS_KEY", "DOCKER_AUTH_CONFIG"] {
            build.env(name, "of-the-environment");
        }
        let mut running = Running::start(build.args(SLOW).args(["--nice", "19"]));
        assert!(running.until(|| volume.join("overlay").is_dir()), "the build has ended");
        // A child that has just started is not confined yet.
        let confined = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.is_empty() || field(&status, "Seccomp:") != "0" || rights(&status, "CapPrm:") == 0
        };
        let id = running.pid().as_raw();
        assert!(running.until(|| descendants(id).iter().all(confined)), "the build has ended");
        let (mut fetchers, mut extractors) = (0, 0);
        for pid in descendants(running.pid().as_raw()) {
            let proc = Path::new("/proc").join(pid.to_string());
            let environment = String::from_utf8(fs::read(proc.join("environ")).unwrap()).unwrap();
            assert!(!environment.contains("of-the-environment"), "{environment}");
            for output in ["fd/1", "fd/2"] {
                let output = fs::read_link(proc.join(output)).unwrap();
                assert!(output.to_str().unwrap().starts_with("pipe:"), "{}", output.display());
            }
            let of = |path: &Path| fs::read_to_string(path.join("status")).unwrap();
            let score: i32 = fs::read_to_string(proc.join("oom_score_adj")).unwrap().trim().parse().unwrap();
            assert!(score >= 500, "{score}");
            if field(&of(&proc), "Seccomp:") == "0" {
                // The parent waits outside of the namespace for the worker.
                assert_eq!(rights(&of(&proc), "CapPrm:"), 0);
                continue;
            }
            let kept = rights(&of(&proc), "CapEff:");
            *if kept == 0 { &mut fetchers } else { &mut extractors } += 1;
            assert_eq!((kept & !KEPT, kept & 0x8800_001b), (0, if kept == 0 { 0 } else { 0x8800_001b }));
            // Check every thread, because rights are per thread.
            let mut threads = 0;
            for thread in fs::read_dir(proc.join("task")).unwrap() {
                let thread = thread.unwrap().path();
                let status = of(&thread);
                assert_eq!(
                    (field(&status, "NoNewPrivs:"), field(&status, "Seccomp:")),
                    ("1", "2"),
                    "{status}"
                );
                for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
                    assert_eq!(rights(&status, set), kept, "{status}");
                }
                for set in ["CapInh:", "CapAmb:"] {
                    assert_eq!(rights(&status, set), 0, "{status}");
                }
                // proc_pid_stat(5): nice is the 19th field, the 17th after the name.
                let stat = fs::read_to_string(thread.join("stat")).unwrap();
                let nice = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap();
                // The maximum, because a niceness of the test itself could not be lowered.
                assert_eq!(nice, "19", "{stat}");
                threads += 1;
            }
            assert!(threads > 1, "expected more than one thread");
        }
        assert_eq!((fetchers, extractors), (1, 1));
    });
}

/// Returns a field of proc_pid_status(5).
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim()
}

fn rights(status: &str, set: &str) -> u64 {
    u64::from_str_radix(field(status, set), 16).unwrap()
}

#[case]
fn a_builder_ends_with_its_parent() {
    isolated(&[], || {
        let served = Served::new([large()]);
        let volume = served.volume();
        let build = served.build(&volume, 256 << 20);
        // A shell between the test and the builder. It prints the builder's process ID and waits.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "\"$@\" >/dev/null 2>&1 & echo $!; wait", "sh"]).arg(build.get_program());
        shell.args(build.get_args()).args(SLOW).env("LARDER_REGISTRY__RETRIES", "1");
        let mut child = shell.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let mut parent = Running::of(child);
        assert!(parent.until(|| volume.join("overlay").is_dir()), "the build has ended");
        parent.kill();
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        let stat = Path::new("/proc").join(said.trim()).join("stat");
        // An orphan that has ended can stay a zombie until its new parent reaps it.
        let gone = || fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !gone() {
            assert!(Instant::now() < deadline, "the builder outlived its parent");
            sleep(Duration::from_millis(5));
        }
        assert!(!volume.join("cache.json").exists(), "the builder finished before the kill");
    });
}

#[case]
fn a_child_that_does_not_stop_is_killed() {
    isolated(&[], || {
        let served = Served::new([large()]);
        let volume = served.volume();
        let mut running = Running::start(served.build(&volume, 256 << 20).args(SLOW));
        assert!(running.until(|| volume.join("overlay").is_dir()), "the build has ended");
        for child in descendants(running.pid().as_raw()) {
            kill(Pid::from_raw(child), Signal::SIGSTOP).unwrap();
        }
        running.signal(Signal::SIGTERM);
        assert_ne!(running.code_within(Duration::from_secs(60)), Some(0));
        until_gone(&volume);
    });
}

#[case]
fn a_parent_that_is_gone_already_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let volume = dir.path().join("volume");
    let mut build = build(&volume, "localhost:1/a:1");
    // No process has the ID 2^32 - 1.
    let said = exits(130, build.arg("--die-with-parent=4294967295"));
    assert!(said.contains("has ended"), "{said}");
    assert!(!volume.exists());
}

#[case]
fn help_says_how_a_build_is_confined() {
    let help = succeed(larder().args(["build", "--help"]));
    for flag in ["--nice", "--die-with-parent", "--no-sandbox", "Landlock"] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[case]
fn a_job_on_standard_input_is_built_confined() {
    isolated(&[REGISTRY], || {
        let registry = Registry::open();
        let layer = Layer::from(LayerBuilder::new().file("etc/x", "x").gzip());
        let image = Image::builder(Format::Oci).layer(layer).build();
        let reference = registry.push(&image, "team/app", "1");
        let dir = tempfile::tempdir().unwrap();
        let parent = format!("--die-with-parent={}", std::process::id());
        let mut build = larder();
        build.args(["build", "--job", "-", "--output", "json", "--nice", "5", &parent]);
        build.arg("--secrets").arg(dir.path()).arg("--volume").arg(dir.path().join("volume"));
        let mut child = build.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let job = json!({"images": [reference], "size": "1GiB", "pull_secrets": ["team:none"]});
        child.stdin.take().unwrap().write_all(job.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let events = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{events}");
        assert!(events.starts_with(r#"{"v":1,"#) && events.contains(r#""event":"started""#), "{events}");
        succeed(larder().arg("verify").arg(dir.path().join("volume")));
    });
}
