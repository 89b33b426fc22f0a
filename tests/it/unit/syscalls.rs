//! Compares the unit's filter of system calls with the calls that the daemon makes.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::{A, LIMIT, UNIT, wait};
use crate::confine::demanding;
use crate::harness::daemon::{Daemon, on_disks};
use crate::harness::served::Served;
use crate::harness::{Need, isolated, succeed};

pub(crate) type Calls = BTreeSet<String>;

/// Returns the system call sets of this machine's systemd, by name with the `@`.
fn sets() -> HashMap<String, Vec<String>> {
    let text = succeed(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager"]));
    let mut sets: HashMap<String, Vec<String>> = HashMap::new();
    let mut current = None;
    for line in text.lines() {
        match line.strip_prefix(' ').map(str::trim) {
            None => current = line.starts_with('@').then(|| line.trim().to_owned()),
            Some(member) => {
                // A `#` starts a description, or a list of calls that are in no set.
                if let Some(set) = current.as_ref().filter(|_| !member.starts_with('#')) {
                    sets.entry(set.clone()).or_default().push(member.to_owned());
                }
            }
        }
    }
    sets
}

fn expand(name: &str, sets: &HashMap<String, Vec<String>>) -> Calls {
    if !name.starts_with('@') {
        return Calls::from([name.to_owned()]);
    }
    let members = sets.get(name).unwrap_or_else(|| panic!("systemd has no set {name}"));
    members.iter().flat_map(|member| expand(member, sets)).collect()
}

/// Returns the calls that a unit allows, by the rules of systemd.exec(5): lines apply in order, `~` removes
/// calls, and `@default` is always allowed.
pub(crate) fn allowed(unit: &str) -> Calls {
    let sets = sets();
    let mut allowed = expand("@default", &sets);
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (away, names) = line.strip_prefix('~').map_or((false, line), |names| (true, names));
        for call in names.split_whitespace().flat_map(|name| expand(name, &sets)) {
            if away {
                allowed.remove(&call);
            } else {
                allowed.insert(call);
            }
        }
    }
    allowed
}

/// Returns the calls of a summary of `strace -c -U name`, which exists once the last process has ended.
pub(crate) fn made(summary: &Path) -> Option<Calls> {
    let text = fs::read_to_string(summary).ok()?;
    let names = text.lines().map(str::trim).filter(|line| {
        let mut bytes = line.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
    });
    let names: Calls = names.map(str::to_owned).collect();
    names.contains("total").then(|| names.into_iter().filter(|n| n != "total" && n != "syscall").collect())
}

#[case]
fn every_call_that_is_made_is_allowed() {
    let needs = [Need::Program("systemd-analyze"), Need::Program("strace"), Need::Program("busybox")];
    isolated(&needs, || {
        let dir = tempfile::tempdir().unwrap();
        let summary = dir.path().join("calls");
        // The tracer is a separate process, so that the started process is the daemon.
        let strace = ["strace", "-D", "-f", "-c", "-U", "name", "-o", summary.to_str().unwrap()];
        let served = Served::new([demanding()]);
        let mut daemon = Daemon::start_by(&strace.map(str::to_owned), &[A], &on_disks());
        let cached = |name| {
            let id = daemon.order(A, name, &served.references());
            daemon.settle(A, &id, "Available", LIMIT);
            id
        };
        // Fetch, reuse, reload, plan and delete.
        let first = cached("first");
        cached("second");
        daemon.signal(Signal::SIGHUP);
        let plan = serde_json::json!({
            "name": "third", "images": served.references(), "building_config": {"cluster": "here"},
        });
        daemon.ask(A, "POST", "/larder/v1/plan", Some(&plan)).expect(200);
        daemon.ask(A, "DELETE", &format!("/v5/imagecaches/{first}"), None).expect(202);
        let path = format!("/v5/imagecaches/{first}");
        wait(|| daemon.ask(A, "GET", &path, None).0.status == 404, "the first is gone");
        daemon.stop();
        wait(|| made(&summary).is_some(), "strace has written the summary");
        let made = made(&summary).unwrap();

        // The summary contains calls of the daemon, its builders, their sandbox, and the clock check.
        let certain = [
            "accept4",
            "mknodat",
            "capset",
            "landlock_restrict_self",
            "clock_adjtime",
            "getpriority",
            "fsmount",
        ];
        let missed: Vec<_> = certain.iter().filter(|call| !made.contains(**call)).collect();
        assert!(missed.is_empty(), "{missed:?} not in {made:?}");
        let refused: Vec<_> = made.difference(&allowed(UNIT)).cloned().collect();
        assert!(refused.is_empty(), "the unit refuses {refused:?}");
    });
}
