//! Test harness: registries, consumers and file systems of this machine. Each is removed when it is dropped.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) mod agent;
pub(crate) mod authority;
pub(crate) mod cgroup;
pub(crate) mod cluster;
pub(crate) mod containerd;
pub(crate) mod cri;
pub(crate) mod daemon;
pub(crate) mod dns;
pub(crate) mod du;
pub(crate) mod filesystem;
pub(crate) mod front;
pub(crate) mod http;
pub(crate) mod layers;
pub(crate) mod need;
pub(crate) mod node;
pub(crate) mod opened;
pub(crate) mod overlay;
pub(crate) mod podman;
pub(crate) mod prometheus;
pub(crate) mod python;
pub(crate) mod registry;
pub(crate) mod served;
pub(crate) mod skopeo;
pub(crate) mod snapshots;
pub(crate) mod token;
pub(crate) mod tree;

pub(crate) use need::{Need, isolated};

/// Returns a command that runs the `larder` under test.
pub(crate) fn larder() -> Command {
    Command::new(env!("CARGO_BIN_EXE_larder"))
}

/// Returns a command that runs a shell script. `$0` is `path`, and `$@` is `command`.
pub(crate) fn in_shell(script: &str, path: &Path, command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).arg(path).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Runs a command to its end. Panics with its output if it failed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end and checks its exit code. Returns both streams as one text.
pub(crate) fn exits(code: i32, command: &mut Command) -> String {
    let output = run(command);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{text}");
    text
}

/// Runs a command that must end within `limit`. Returns its output and exit status.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + limit;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!(
                "{command:?}: still running after {limit:?}\n{}",
                text(&child.wait_with_output().unwrap())
            );
        }
        sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("starting {command:?}: {error}"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
