//! The command line of the real binary: usage errors, help, closed output.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn larder(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(args).env_remove("LARDER_LOG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    larder(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[case]
fn usage_errors_are_64_on_standard_error() {
    for (args, said) in [
        (&["bake"][..], "bake"),
        (&[], "Usage"),
        (&["build"], "no image given"),
        (&["build", "a", "--volume", "v"], "no size given"),
        (&["build", "a", "--size", "1GiB"], "no volume given"),
        (&["build", "a", "--volume", "v", "--size", "0B"], "the size is 0"),
        (&["build", "a@sha256:zz"], "a@sha256:zz"),
        (&["build", "--job", "/nonexistent", "--volume", "v"], "/nonexistent"),
        (&["plan", "a", "--pull-secret", "ns:name"], "--secrets"),
        (&["config", "check", "--config", "/nonexistent"], "/nonexistent"),
        (&["config", "show", "--log-level", "larder=loud"], "log level"),
        (&["build", "--kept", "fill", "a"], "--kept"),
        (&["verify", "--for-use", "a"], "--for-use"),
        (&["internal", "verify-child"], "<VOLUME>"),
        (&["internal", "build-child", "fill", "--supervisor", "1", "--", "plan", "a"], "child processes"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        assert!(text(&output.stderr).contains(said), "{args:?}: {}", text(&output.stderr));
    }
}

#[case]
fn help_and_version_are_0_on_standard_output() {
    for args in [&["--help"][..], &["--version"], &["build", "--help"], &["help", "plan"]] {
        let output = run(args);
        let shows_it = text(&output.stdout).lines().any(|line| line.trim_start().starts_with("internal"));
        assert!(!shows_it, "{args:?}: {}", text(&output.stdout));
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    let help = text(&run(&["build", "--help"]).stdout);
    assert!(help.contains("larder build --volume ./cache --size 20GiB"), "{help}");
}

#[case]
fn a_closed_standard_output_does_not_panic() {
    let read_end_closed = |args: &[&str]| {
        let mut child = larder(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    for (args, code) in [(&["--help"][..], 0), (&["config", "show"], 0), (&["build", "--output", "json"], 64)]
    {
        let output = read_end_closed(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        assert!(!text(&output.stderr).contains("panicked"), "{output:?}");
    }
}

#[case]
fn a_job_that_is_refused_leaves_its_result() {
    let result = std::env::temp_dir().join(format!("larder-cli-result-{}", std::process::id()));
    let job = format!(r#"{{"version":1,"images":["A B"],"result_file":{:?}}}"#, result.to_str().unwrap());
    let mut child = larder(&["build", "--job", "-", "--volume", "v", "--output", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(job.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let left: serde_json::Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    std::fs::remove_file(&result).unwrap();
    assert_eq!((&left["exit_code"], &left["class"]), (&64.into(), &"invalid".into()));
    let stdout = text(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let last: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&last["v"], &last["event"]), (&1.into(), &"result".into()));
}

#[case]
fn what_is_not_a_volume_is_not_inspected() {
    let empty = std::env::temp_dir().join(format!("larder-cli-empty-{}", std::process::id()));
    std::fs::create_dir_all(&empty).unwrap();
    for command in ["inspect", "verify"] {
        let output = run(&[command, empty.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(73), "{output:?}");
        assert!(text(&output.stderr).contains("not sealed"), "{output:?}");
    }
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    std::fs::remove_dir(&empty).unwrap();
}
