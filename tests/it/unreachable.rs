//! Registries that cannot be reached, wrong tags, and credentials on the command line, with the real binary.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_testing::image::{Format, Image, Layer};
use larder_testing::layer::LayerBuilder;
use larder_testing::registry::{Auth, Fault, Registry};

use crate::harness::served::random;
use crate::harness::{exits, isolated, larder, run_within, succeed};

const PASSWORD: &str = "correct-horse:battery";

fn plan(reference: &str) -> Command {
    let mut larder = larder();
    larder.arg("plan").arg(reference);
    larder
}

/// Runs a command that must fail because of the network within `limit`. Returns its messages.
fn gives_up(command: &mut Command, limit: Duration) -> String {
    let output = run_within(command, limit);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(64 | 69)), "{command:?}: {}\n{said}", output.status);
    said
}

#[case]
fn a_registry_that_cannot_be_reached_fails_soon() {
    isolated(&[], || {
        let refused = "127.0.0.1:1/team/app:1";
        for reference in [refused, "larder.invalid/team/app:1"] {
            let started = Instant::now();
            let said = gives_up(&mut plan(reference), Duration::from_secs(40));
            assert!(said.contains("check the name of the registry"), "{said}");
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}\n{said}", started.elapsed());
        }
        let dir = tempfile::tempdir().unwrap();
        let mut build = larder();
        build.args(["build", "--size", "64MiB", "--volume"]).arg(dir.path().join("v")).arg(refused);
        gives_up(&mut build, Duration::from_secs(10));
        // The flag overrides the limit.
        let said = gives_up(plan(refused).args(["--retries", "0"]), Duration::from_secs(10));
        assert!(!said.contains("again in"), "{said}");
    });
}

#[case]
fn a_server_that_never_answers_fails_soon() {
    isolated(&[], || {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut plan = plan(&format!("{}/team/app:1", silent.local_addr().unwrap()));
        plan.env("LARDER_REGISTRY__CONNECT_TIMEOUT_SECONDS", "1");
        plan.env("LARDER_REGISTRY__STALL_TIMEOUT_SECONDS", "1");
        let said = gives_up(&mut plan, Duration::from_secs(30));
        assert!(said.contains("no data received for 2 s"), "{said}");
    });
}

fn image() -> Image {
    let layer = LayerBuilder::new().file("big", random(1, 400_000)).gzip();
    Image::builder(Format::Oci).layer(Layer::from(layer)).build()
}

#[case]
fn the_hint_for_a_wrong_tag_names_similar_tags() {
    isolated(&[], || {
        let mut registry = Registry::spawn();
        image().push(&mut registry, "team/app", "1.27.1").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let reference = format!("{}/team/app:1.27", registry.host());
        let mut build = larder();
        build.args(["build", "--size", "64MiB", "--volume"]).arg(dir.path().join("v")).arg(&reference);
        for command in [&mut plan(&reference), &mut build] {
            let said = exits(64, command);
            assert!(said.contains("hint: did you mean the tag 1.27.1?"), "{said}");
        }
    });
}

/// Returns the command lines of all processes that contain `text`, except that of `pid`.
fn command_lines_with(text: &str, pid: u32) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let others = processes.filter(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        name.parse::<u32>().is_ok_and(|number| number != pid)
    });
    let lines = others.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

#[case]
fn credentials_of_the_command_line_reach_no_child_process() {
    isolated(&[], || {
        let (mut registry, image) = (Registry::spawn(), image());
        image.push(&mut registry, "team/app", "1").unwrap();
        registry.require(Auth::Basic(vec![("anna".to_owned(), PASSWORD.to_owned())]));
        let slow = Fault::Dribble {
            digest: image.layers[0].digest.clone(),
            bytes: 50_000,
            every: Duration::from_millis(300),
        };
        registry.fault(slow);
        let reference = format!("{}/team/app:1", registry.host());
        let dir = tempfile::tempdir().unwrap();
        let creds = format!("anna:{PASSWORD}");
        let mut build = larder();
        build.args(["build", "--size", "64MiB", "--creds", &creds, "--volume"]).arg(dir.path().join("v"));
        build.arg(&reference).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut build = build.spawn().unwrap();
        let mut children = 0;
        while build.try_wait().unwrap().is_none() {
            assert_eq!(command_lines_with("battery", build.id()), Vec::<String>::new());
            children = children.max(command_lines_with(" build-child ", build.id()).len());
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(children >= 2, "{children} child processes were seen");

        succeed(plan(&reference).args(["--creds", &creds]));
        let wrong = exits(77, plan(&reference).args(["--creds", "anna:other-secret"]));
        let incomplete = exits(64, plan(&reference).args(["--creds", "battery-alone"]));
        assert!(incomplete.contains("--authfile"), "{incomplete}");
        for said in [wrong, incomplete] {
            assert!(!said.contains("other-secret") && !said.contains("battery"), "{said}");
        }
    });
}
