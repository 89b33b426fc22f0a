//! The space that a volume occupies during a build, as du(1) counts it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, sleep};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::served::descendants;

/// Returns the bytes that `du -s -B1` counts.
pub(crate) fn used(volume: &Path) -> u64 {
    let output = Command::new("du").args(["-s", "-B1"]).arg(volume).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    printed.split('\t').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Measurements of a build.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) output: Output,
    /// Maximum number of bytes that any sample found.
    pub(crate) max_bytes: u64,
    /// Number of samples taken.
    pub(crate) samples: usize,
}

impl Watched {
    pub(crate) fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

/// Runs `build` to its end and samples the size of `volume` repeatedly. All processes of the build are
/// stopped during a sample, because du would count a layer twice that is renamed meanwhile.
pub(crate) fn watch(build: &mut Command, volume: &Path) -> Watched {
    let child = build.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let looking = thread::spawn({
        let volume: PathBuf = volume.to_owned();
        move || {
            let (mut max_bytes, mut samples) = (0, 0);
            // A zombie accepts signals until its parent waits for it. That happens only after this loop.
            while stop(pid) {
                max_bytes = max_bytes.max(used(&volume));
                samples += 1;
                resume_processes(pid);
                sleep(Duration::from_millis(40));
            }
            (max_bytes, samples)
        }
    });
    let (max_bytes, samples) = looking.join().unwrap();
    let output = child.wait_with_output().unwrap();
    Watched { output, max_bytes: max_bytes.max(used(volume)), samples }
}

/// Stops a build (`pid` and its children) and waits until all their threads are stopped. Returns false if it
/// has ended.
fn stop(pid: Pid) -> bool {
    // A parent is stopped before the search for its children, so it starts none after that.
    if !stop_one(pid) {
        return false;
    }
    for child in descendants(pid.as_raw()) {
        stop_one(Pid::from_raw(child));
    }
    true
}

fn stop_one(pid: Pid) -> bool {
    if kill(pid, Signal::SIGSTOP).is_err() {
        return false;
    }
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let states: Vec<_> = tasks.filter_map(|task| state(&task.path().join("stat"))).collect();
        if states.iter().all(|state| matches!(state, 'Z' | 'X')) {
            return false;
        }
        if states.iter().all(|state| *state == 'T') {
            return true;
        }
        thread::yield_now();
    }
}

/// Continues a stopped build.
fn resume_processes(pid: Pid) {
    for process in [vec![pid.as_raw()], descendants(pid.as_raw())].concat() {
        // An error means that the process has just ended.
        let _ = kill(Pid::from_raw(process), Signal::SIGCONT);
    }
}

/// Returns the letter after the name in `/proc/…/stat` (proc_pid_stat(5)).
fn state(path: &Path) -> Option<char> {
    let stat = fs::read_to_string(path).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
