//! Tests in Python, for tools that exist only there: the vendor's SDK, the fuzzer of HTTP APIs, and a
//! driver of browsers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use serde_json::Value;

/// Returns the Python environment that `scripts/install-deps.sh` creates.
pub(crate) fn environment() -> PathBuf {
    match env::var_os("LARDER_PYTHON_ENV") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python"),
    }
}

/// Returns a program of the environment that works in `dir` and leaves no files elsewhere.
pub(crate) fn program(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(environment().join("bin").join(name));
    command.current_dir(dir).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONUNBUFFERED", "1");
    // The daemon is on loopback: ignore any proxy of this machine.
    command.env("NO_PROXY", "*").env("no_proxy", "*");
    command
}

/// Runs tests of a directory in `tests/it` against `stage`, within `limit`, and returns their output.
pub(crate) fn pytest(tests: &str, files: &[&str], stage: &Value, limit: Duration) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stage.json");
    fs::write(&path, stage.to_string()).unwrap();
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(tests);
    let mut command = program("python", dir.path());
    command.args([
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:schemathesis",
        "-q",
        "-s",
        "--tb=short",
    ]);
    command.arg("--rootdir").arg(&tests).args(files.iter().map(|file| tests.join(file)));
    succeed_within(command.env("LARDER_STAGE", path), dir.path(), limit)
}

/// Runs a command to its end. Panics with its output if it failed or exceeded the limit.
pub(crate) fn succeed_within(command: &mut Command, dir: &Path, limit: Duration) -> String {
    let log = dir.join("printed");
    let file = fs::File::create(&log).unwrap();
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        sleep(Duration::from_millis(50));
    };
    let printed = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    match status {
        Some(status) => assert!(status.success(), "{command:?}: {status}\n{printed}"),
        None => panic!("{command:?}: not done within {limit:?}\n{printed}"),
    }
    printed
}
