//! Tests version 2 on a tree of plain files, and version 1 on the real kernel if this machine has it.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const LIMITS: Limits = Limits { memory: 64 << 20, cpu_weight: 50, pids: 100 };

fn unified(dir: &Path, path: &str) -> (String, String) {
    (format!("1 1 0:1 / {} rw - cgroup2 none rw\n", dir.display()), format!("0::{path}\n"))
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn version_2_enables_controllers_from_a_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    let (mountinfo, own) = unified(dir, "/");
    let groups = Cgroups::find(&mountinfo, &own);
    assert_eq!(groups.to_string(), "version 2: memory, cpu, pids");
    let pid = std::process::id().to_string();
    assert_eq!(read(dir.join("daemon/cgroup.procs")), pid);
    assert_eq!(read(dir.join("cgroup.subtree_control")), "+memory +cpu +pids");

    let group = groups.create("x", &LIMITS).unwrap().unwrap();
    let at = dir.join(own_name("x"));
    group.add(4_000_000).unwrap();
    for (file, want) in [
        ("memory.max", "67108864"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.weight", "50"),
        ("pids.max", "100"),
        ("cgroup.procs", "4000000"),
    ] {
        assert_eq!(read(at.join(file)), want, "{file}");
    }
    assert!(!group.ran_out_of_memory());
    fs::write(at.join("memory.events"), "low 0\noom 2\noom_kill 1\noom_group_kill 1\n").unwrap();
    assert!(group.ran_out_of_memory());

    // Act as the kernel: processes and files of a group disappear when it is killed.
    fs::write(at.join("cgroup.kill"), "").unwrap();
    let killed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let until = Instant::now() + Duration::from_secs(10);
            while fs::read_to_string(at.join("cgroup.kill")).is_ok_and(|text| text != "1") {
                assert!(Instant::now() < until, "the group was not killed");
                std::thread::yield_now();
            }
            killed.store(true, Ordering::SeqCst);
            for entry in fs::read_dir(&at).unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        });
        group.remove().unwrap();
    });
    assert!(killed.load(Ordering::SeqCst) && !at.exists());
}

#[test]
fn version_2_needs_delegation() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("user.slice");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("cgroup.controllers"), "cpu memory\n").unwrap();
    let (mountinfo, path) = unified(dir.path(), "/user.slice");
    let groups = Cgroups::find(&mountinfo, &path);
    assert!(groups.to_string().contains("not delegated"), "{groups}");
    assert!(!groups.limits() && groups.create("x", &LIMITS).unwrap().is_none());
    assert!(!own.join(LEAF).exists());

    // Act as systemd does for `Delegate=`.
    xattr::set(fs::File::open(&own).unwrap(), b"trusted.delegate", b"1").unwrap();
    assert_eq!(Cgroups::find(&mountinfo, &path).to_string(), "version 2: memory, cpu");
    assert!(own.join("daemon/cgroup.procs").exists());
}

#[test]
fn version_2_without_memory_is_not_enough() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "cpu pids\n").unwrap();
    let (mountinfo, own) = unified(dir.path(), "/");
    let groups = Cgroups::find(&mountinfo, &own);
    assert_eq!(groups.to_string(), "none: version 2 has no memory controller for this process");
    assert_eq!(Cgroups::find("", "").to_string(), "none: no cgroup hierarchy is mounted");
}

#[test]
fn a_failed_delegation_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("cgroup.controllers"), "memory\n").unwrap();
    fs::create_dir(dir.path().join("cgroup.subtree_control")).unwrap();
    let (mountinfo, own) = unified(dir.path(), "/");
    let groups = Cgroups::find(&mountinfo, &own);
    assert!(groups.to_string().starts_with("none: cannot enable controllers for child cgroups"), "{groups}");
    assert_eq!(read(dir.path().join("cgroup.procs")), std::process::id().to_string());
}

#[test]
fn groups_of_earlier_daemons_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("cgroup.controllers"), "memory\n").unwrap();
    // The second has the process ID of this process, as in a container; the third belongs to this process.
    let pid = std::process::id();
    let names =
        ["larder-4000000.7-x".to_owned(), format!("larder-{pid}.7-x"), own_name("x"), "other".to_owned()];
    names.iter().for_each(|name| fs::create_dir(dir.join(name)).unwrap());
    let (mountinfo, own) = unified(dir, "/");
    Cgroups::find(&mountinfo, &own);
    assert_eq!(names.map(|name| dir.join(name).exists()), [false, false, true, true]);
}

/// Returns the groups of this machine, if it has version 1 and this process can use them.
fn version_1() -> Option<Cgroups> {
    let groups = Cgroups::of_this_process();
    let usable = groups.limits() && groups.version == Version::One;
    assert!(usable || std::env::var_os("LARDER_REQUIRE_ALL").is_none(), "no usable control groups: {groups}");
    usable.then_some(groups)
}

fn shell(script: &str) -> Child {
    Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap()
}

#[test]
fn version_1_enforces_the_memory_limit() {
    let Some(groups) = version_1() else { return };
    let limits = Limits { memory: 4 << 20, ..LIMITS };
    let group = groups.create("greedy", &limits).unwrap().unwrap();
    // The child waits for a line, so that it does nothing before it is in its group. Then it doubles a
    // variable forever.
    let mut child = shell("read go; x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done");
    group.add(child.id()).unwrap();
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(group.ran_out_of_memory());
    let dirs: Vec<PathBuf> = group.dirs.iter().map(|group| group.dir.clone()).collect();
    group.remove().unwrap();
    assert!(dirs.iter().all(|dir| !dir.exists()));
}

#[test]
fn a_dropped_version_1_group_is_removed() {
    let Some(groups) = version_1() else { return };
    let group = groups.create("dropped", &LIMITS).unwrap().unwrap();
    let dirs: Vec<PathBuf> = group.dirs.iter().map(|group| group.dir.clone()).collect();
    let mut child = shell("read go; exec sleep 1000");
    group.add(child.id()).unwrap();
    drop(child.stdin.take());
    // This happens when a client that requested a plan disconnects.
    drop(group);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    let until = Instant::now() + Duration::from_secs(10);
    while dirs.iter().any(|dir| dir.exists()) {
        assert!(Instant::now() < until, "{dirs:?}");
        std::thread::yield_now();
    }
}

#[test]
fn version_1_removes_remaining_processes() {
    let Some(groups) = version_1() else { return };
    let group = groups.create("left", &LIMITS).unwrap().unwrap();
    let mut child = shell("read go; sleep 1000 & exec sleep 1000");
    group.add(child.id()).unwrap();
    drop(child.stdin.take());
    let memory = group.dirs.iter().find(|group| group.controllers.contains(&Controller::Memory)).unwrap();
    let procs = memory.dir.join("cgroup.procs");
    let until = Instant::now() + Duration::from_secs(10);
    while read(procs.clone()).lines().count() < 2 {
        assert!(Instant::now() < until, "the child started no second process");
        std::thread::yield_now();
    }
    let limit = read(memory.dir.join("memory.limit_in_bytes"));
    assert_eq!(limit.trim(), LIMITS.memory.to_string());
    // A second group with the same name replaces the first one.
    std::mem::forget(group);
    let again = groups.create("left", &LIMITS).unwrap().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(read(procs), "");
    again.remove().unwrap();
}
