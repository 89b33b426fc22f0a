//! What people see: help, tables, errors and progress of the real binary, on a terminal of 80 columns.
//!
//! After a change of a text, `INSTA_UPDATE=always cargo test --test it outputs` writes the snapshots again.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Auth, Fault, Registry};

use crate::harness::authority::Authority;
use crate::harness::daemon::{Daemon, ROOMY, Tenant};
use crate::harness::filesystem::{FileSystem, Kind};
use crate::harness::node::Node;
use crate::harness::served::random;
use crate::harness::{Need, isolated, larder, registry, succeed};

const A: Tenant = Tenant("team-a");
const B: Tenant = Tenant("team-b");
/// Time limit for a cache to get a status.
const LIMIT: Duration = Duration::from_secs(60);

/// Patterns of what differs between two runs, and replacements of the same width: tables stay aligned.
const FILTERS: [(&str, &str); 11] = [
    (r"127\.0\.0\.1:\d{5}", "127.0.0.1:50000"),
    (r"/tmp/\.tmp\w{6}", "/tmp/.tmpXXXXXX"),
    (r"[0-9a-f]{64}", "0000000000000000000000000000000000000000000000000000000000000000"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "00000000-0000-0000-0000-000000000000"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "2026-01-01T00:00:00Z"),
    (r"[\d.]+ [KMGT]iB free", "100 GiB free"),
    (r"in \d+\.\d s", "in 0.1 s"),
    // Lines of progress, at least one.
    (r"(?m)(^0/1 layers, .*\n)+", "0/1 layers, 300 KiB of 618.04 KiB, 200 KiB/s, 2 s left\n"),
    (r"(?m)in \d+ s$", "in 2 s"),
    // Seconds of a layer in tables.
    (r"\d\.\d      committed", "0.0      committed"),
    // Ages in tables.
    (r"\b(\d\ds|\ds ) ", "1s  "),
];

/// Compares a text with its snapshot.
#[track_caller]
fn compare(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (pattern, replacement) in FILTERS {
        settings.add_filter(pattern, replacement);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}

/// Returns `larder` with a home directory, and without other variables.
fn larder_in(dir: &Path) -> Command {
    let mut command = larder();
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", dir).env("COLUMNS", "80");
    command.env("LARDER_STATE__DIR", dir.join("state")).current_dir(dir);
    command
}

/// Runs a command, and returns its command line, its output and its exit code.
fn session(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    let separator = if stdout.is_empty() || stderr.is_empty() { "" } else { "-- standard output --\n" };
    format!(
        "$ larder {}\n{stderr}{separator}{stdout}-- exit code {} --\n",
        words.join(" "),
        status.code().unwrap()
    )
}

/// Returns an image of one layer with a file of this many random bytes.
fn image(bytes: usize) -> Image {
    let layer = Layer::from(LayerBuilder::new().file("data", random(1, bytes)).gzip());
    Image::builder(Format::Oci).layer(layer).build()
}

/// Starts a registry with `team/app:1`.
fn registry_with_image(bytes: usize) -> Registry {
    let mut registry = Registry::spawn();
    image(bytes).push(&mut registry, "team/app", "1").unwrap();
    registry
}

/// Returns a build of an image into `volume`.
fn build(dir: &Path, reference: &str) -> Command {
    let mut larder = larder_in(dir);
    larder.args(["build", "--volume", "cache", "--size", "64MiB", reference]);
    larder
}

#[case]
fn help() {
    let dir = tempfile::tempdir().unwrap();
    compare("help", &session(larder_in(dir.path()).arg("--help")));
    compare("help_build", &session(larder_in(dir.path()).args(["build", "-h"])));
}

#[case]
fn a_wrong_tag() {
    isolated(&[], || {
        let mut registry = registry_with_image(100);
        for tag in ["1.27.1", "1.27.2", "latest"] {
            image(100).push(&mut registry, "team/app", tag).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let reference = format!("{}/team/app:1.27", registry.host());
        compare("wrong_tag", &session(&mut build(dir.path(), &reference)));
        let unknown = format!("{}/team/aap:1", registry.host());
        compare("wrong_repository", &session(&mut build(dir.path(), &unknown)));
    });
}

#[case]
fn a_private_image() {
    isolated(&[], || {
        let registry = registry_with_image(100);
        registry.require(Auth::Basic(vec![("anna".to_owned(), "secret".to_owned())]));
        let dir = tempfile::tempdir().unwrap();
        let reference = format!("{}/team/app:1", registry.host());
        compare("private_image", &session(&mut build(dir.path(), &reference)));
        let mut build = build(dir.path(), &reference);
        compare("wrong_password", &session(build.args(["--creds", "anna:wrong"])));
    });
}

#[case]
fn registries_that_cannot_be_reached() {
    isolated(&[], || {
        let dir = tempfile::tempdir().unwrap();
        compare("refused", &session(&mut build(dir.path(), "127.0.0.1:1/team/app:1")));
        compare("unknown_host", &session(&mut build(dir.path(), "larder.invalid/team/app:1")));
    });
}

#[case]
fn an_unknown_authority() {
    isolated(&[Need::Program("docker-registry"), Need::Program("openssl")], || {
        let dir = tempfile::tempdir().unwrap();
        Authority::new(dir.path()).sign("server", "subjectAltName=IP:127.0.0.1");
        let registry = registry::Registry::with_certificate(dir.path(), &image(100), "team/app", "1");
        compare("unknown_authority", &session(&mut build(dir.path(), &registry.reference("team/app:1"))));
    });
}

#[case]
fn a_full_disk() {
    isolated(&[], || {
        let registry = registry_with_image(8 << 20);
        let disk = FileSystem::new(Kind::Tmpfs, 4 << 20);
        let reference = format!("{}/team/app:1", registry.host());
        compare("full_disk", &session(&mut build(&disk.path(), &reference)));
    });
}

#[case]
fn a_volume_that_is_too_small() {
    isolated(&[], || {
        let registry = registry_with_image(8 << 20);
        let dir = tempfile::tempdir().unwrap();
        let mut larder = larder_in(dir.path());
        larder.args(["build", "--volume", "cache", "--size", "4MiB"]);
        let reference = format!("{}/team/app:1", registry.host());
        compare("too_small", &session(larder.arg(reference)));
    });
}

#[case]
fn a_build_and_its_volume() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        let image = image(600_000);
        image.push(&mut registry, "team/app", "1").unwrap();
        // Slow enough for lines of progress.
        registry.fault(Fault::Dribble {
            digest: image.layers[0].digest.clone(),
            bytes: 100_000,
            every: Duration::from_millis(400),
        });
        let (node, reference) = (Node::new(), format!("{}/team/app:1", registry.host()));
        let dir = tempfile::tempdir().unwrap();
        compare("build", &session(&mut build(dir.path(), &reference)));
        compare("build_again", &session(&mut build(dir.path(), &reference)));
        compare("verify", &session(larder_in(dir.path()).args(["verify", "cache"])));

        let larder = || {
            let mut larder = larder_in(dir.path());
            larder.env("LARDER_STATE__DIR", node.state());
            larder
        };
        compare("attach_list_empty", &session(larder().args(["attach", "--list"])));
        let mut attach = larder();
        attach.args(["attach", "cache", "--no-unit", "--at"]).arg(dir.path().join("icv"));
        attach.arg("--node-root").arg(node.root());
        compare("attach", &session(&mut attach));
        compare("attach_list", &session(larder().args(["attach", "--list"])));
        succeed(larder().args(["detach", "./cache", "--node-root"]).arg(node.root()));

        fs::write(dir.path().join("cache/overlay/extra"), "x").unwrap();
        compare("verify_changed", &session(larder_in(dir.path()).args(["verify", "cache"])));
    });
}

#[case]
fn a_configuration_with_a_typo() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("larder.toml"), "[build]\nconcurency = 4\n\n[registry]\nretries = \"x\"\n")
        .unwrap();
    let check = &["config", "check", "--config", "larder.toml"];
    compare("config_check", &session(larder_in(dir.path()).args(check)));
    fs::write(dir.path().join("larder.toml"), "[build]\nconcurrency = 4\n").unwrap();
    compare("config_check_valid", &session(larder_in(dir.path()).args(check)));
}

#[case]
fn usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    for (name, words) in [
        ("usage_command", &["biuld"][..]),
        ("usage_flag", &["build", "--volume", "cache", "--sise", "1GiB", "nginx"]),
        ("usage_size", &["build", "--volume", "cache", "--size", "lots", "nginx"]),
        ("usage_no_size", &["build", "--volume", "cache", "nginx"]),
    ] {
        compare(name, &session(larder_in(dir.path()).args(words)));
    }
}

/// Returns `larder` as a client of a daemon: of a tenant, or of root over the socket.
fn client(daemon: &Daemon, tenant: Option<Tenant>, words: &[&str]) -> Command {
    let mut larder = larder_in(&daemon.state());
    larder.env("LARDER_STATE__DIR", daemon.state()).args(words);
    match tenant {
        Some(tenant) => {
            larder.env("LARDER_HOST", daemon.endpoint()).env("LARDER_TOKEN", tenant.token());
        }
        None => {
            let socket = daemon.config().with_file_name("larder.sock");
            larder.env("LARDER_HOST", format!("unix://{}", socket.display()));
        }
    }
    larder
}

#[case]
fn caches_of_a_daemon() {
    isolated(&[], || {
        let registry = registry_with_image(100);
        let busy = Fault::Status { path: "/aap/".into(), status: 503, times: 1000, retry_after: None };
        registry.fault(busy);
        // The second attempt starts after the end of the test.
        let more = format!("{ROOMY}caches.build_retry_pause_seconds = 300\n");
        let daemon = Daemon::start(&[A, B], &more);
        let [app, busy] = ["team/app:1", "team/aap:1"].map(|name| format!("{}/{name}", registry.host()));

        let create = &["cache", "create", "web", &app, "--wait"];
        compare("cache_create", &session(&mut client(&daemon, Some(A), create)));
        let create = &["cache", "create", "other", &busy];
        compare("cache_create_no_wait", &session(&mut client(&daemon, Some(B), create)));
        let deadline = Instant::now() + LIMIT;
        while !succeed(&mut client(&daemon, Some(B), &["cache", "ls"])).contains("503") {
            assert!(Instant::now() < deadline, "{}", daemon.log());
        }
        compare("ls_root", &session(&mut client(&daemon, None, &["ls"])));
        compare("ls_tenant", &session(&mut client(&daemon, Some(A), &["ls"])));
        compare("cache_ls_creating", &session(&mut client(&daemon, Some(B), &["cache", "ls"])));
        compare("cache_show", &session(&mut client(&daemon, Some(A), &["cache", "show", "web"])));
        compare("cache_show_creating", &session(&mut client(&daemon, Some(B), &["cache", "show", "other"])));
        compare("cache_show_unknown", &session(&mut client(&daemon, Some(A), &["cache", "show", "wbe"])));
    });
}
