//! Control groups (cgroups(7)): the limits of one child process.
//!
//! Version 2 is used if its tree has the memory controller and was delegated to this process; otherwise
//! version 1, otherwise none. In version 2 no group can contain both processes and groups with limits. This
//! process therefore moves to a leaf group before it enables controllers for children (systemd, "Control
//! Group APIs and Delegation").
//!
//! ```text
//! <own group>/                    version 2; with version 1 the same in the tree of each controller
//!   daemon/                       this process (version 2 only)
//!   larder-<pid>.<start>-<name>/  one child of the daemon that has this process ID and start time
//! ```

mod tree;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

use super::{process, signal, xattr};
use tree::Place;

/// Maximum time that the kernel may take to release a group whose processes were killed.
const REMOVAL: Duration = Duration::from_secs(5);
/// Name of the leaf group of this process.
const LEAF: &str = "daemon";

/// Resource limits of one child process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum memory in bytes, page cache included; 0 means no limit.
    pub memory: u64,
    /// CPU weight in the scale of version 2: 1 to 10000, default 100.
    pub cpu_weight: u32,
    /// Maximum number of processes and threads.
    pub pids: u32,
}

/// The controllers that Larder uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Controller {
    Memory,
    Cpu,
    Pids,
}

impl Controller {
    const ALL: [Controller; 3] = [Controller::Memory, Controller::Cpu, Controller::Pids];

    fn name(self) -> &'static str {
        match self {
            Controller::Memory => "memory",
            Controller::Cpu => "cpu",
            Controller::Pids => "pids",
        }
    }

    fn among<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Controller> {
        let names: Vec<&str> = names.collect();
        Controller::ALL.into_iter().filter(|controller| names.contains(&controller.name())).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A directory in which groups are created.
#[derive(Clone, Debug)]
struct Parent {
    dir: PathBuf,
    controllers: Vec<Controller>,
}

/// The control groups in which groups for children can be created.
#[derive(Debug)]
pub struct Cgroups {
    version: Version,
    parents: Vec<Parent>,
    /// The reason why there are none.
    without: Option<String>,
}

impl Cgroups {
    /// Finds and prepares the groups of this process. Call it once, before the first child is started.
    pub fn of_this_process() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Cgroups::find(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

    /// Returns a value without groups, so that children run without limits. `why` is the reason.
    pub fn none(why: impl Into<String>) -> Self {
        Cgroups { version: Version::One, parents: Vec::new(), without: Some(why.into()) }
    }

    /// Finds the groups from the content of /proc/self/mountinfo and /proc/self/cgroup.
    fn find(mountinfo: &str, own: &str) -> Self {
        let mut why = "no cgroup hierarchy is mounted".to_owned();
        if let Some(place) = tree::unified(mountinfo, own) {
            match delegated(&place) {
                Ok(parent) => {
                    let found = Cgroups { version: Version::Two, parents: vec![parent], without: None };
                    found.sweep();
                    return found;
                }
                Err(reason) => why = reason,
            }
        }
        let places = tree::separate(mountinfo, own);
        let parents = places.into_iter().map(|place| Parent {
            controllers: Controller::among(place.controllers.iter().map(String::as_str)),
            dir: place.dir,
        });
        let parents: Vec<Parent> =
            parents.filter(|parent| !parent.controllers.is_empty() && writable(&parent.dir)).collect();
        if !parents.iter().any(|parent| parent.controllers.contains(&Controller::Memory)) {
            return Cgroups::none(why);
        }
        let found = Cgroups { version: Version::One, parents, without: None };
        found.sweep();
        found
    }

    /// Reports whether children get limits.
    pub fn limits(&self) -> bool {
        !self.parents.is_empty()
    }

    /// Creates a group for one child; `None` if there are no groups. `name` is a file name. A leftover group
    /// of another child of this process with that name is removed, and its processes are killed.
    ///
    /// # Errors
    /// Those of creating the group and of writing its limits.
    pub fn create(&self, name: &str, limits: &Limits) -> io::Result<Option<Cgroup>> {
        if self.parents.is_empty() {
            return Ok(None);
        }
        let mut group = Cgroup { version: self.version, dirs: Vec::new(), removed: false };
        for parent in &self.parents {
            let dir = parent.dir.join(own_name(name));
            match fs::create_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    remove(&dir)?;
                    fs::create_dir(&dir)?;
                }
                made => made?,
            }
            group.dirs.push(Parent { dir: dir.clone(), controllers: parent.controllers.clone() });
            for controller in &parent.controllers {
                for setting in settings(self.version, *controller, limits) {
                    let written = fs::write(dir.join(setting.file), &setting.value);
                    // Swap accounting can be disabled, and older kernels lack some of the files.
                    if setting.needed {
                        written?;
                    }
                }
            }
        }
        Ok(Some(group))
    }

    /// Removes groups of daemons that have ended. The kernel refuses to remove groups that still contain
    /// processes.
    fn sweep(&self) {
        for parent in &self.parents {
            for entry in fs::read_dir(&parent.dir).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let owner = name.to_str().and_then(|name| name.strip_prefix("larder-")?.split('-').next());
                if owner.is_some_and(|owner| !runs(owner)) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }
}

impl fmt::Display for Cgroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.without {
            return write!(f, "none: {why}");
        }
        let version = match self.version {
            Version::One => "version 1",
            Version::Two => "version 2",
        };
        let all: Vec<&str> =
            self.parents.iter().flat_map(|parent| &parent.controllers).map(|c| c.name()).collect();
        write!(f, "{version}: {}", all.join(", "))
    }
}

/// Returns the name of a group of this process. The start time is included, because every daemon in a
/// container has the same process ID.
fn own_name(name: &str) -> String {
    let pid = std::process::id();
    format!("larder-{pid}.{}-{name}", process::started(pid).unwrap_or_default())
}

/// Reports whether the process in the name of a group is still running.
fn runs(owner: &str) -> bool {
    let Some((pid, start)) = owner.split_once('.') else { return false };
    let (Ok(pid), Ok(start)) = (pid.parse(), start.parse::<u64>()) else { return true };
    process::started(pid).unwrap_or_default() == start
}

/// Takes over a version 2 group: moves this process to a leaf and enables the controllers for children.
///
/// Only a delegated group may be changed. systemd marks it with an attribute (`Delegate=`). The root of a
/// cgroup namespace belongs to its container.
fn delegated(place: &Place) -> Result<Parent, String> {
    let dir = &place.dir;
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let controllers = Controller::among(controllers.split_whitespace());
    if !controllers.contains(&Controller::Memory) {
        return Err("version 2 has no memory controller for this process".into());
    }
    if !place.root && !marked(dir) {
        return Err("the cgroup was not delegated to this service: set Delegate=yes in its unit".into());
    }
    let failed = |what: &str, e: io::Error| format!("{what} in {}: {e}", dir.display());
    let leaf = dir.join(LEAF);
    match fs::create_dir(&leaf) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("cannot create a leaf cgroup", e));
        }
        _ => {}
    }
    let own = std::process::id().to_string();
    fs::write(leaf.join("cgroup.procs"), &own)
        .map_err(|e| failed("cannot move this process to a leaf cgroup", e))?;
    let down: Vec<String> = controllers.iter().map(|controller| format!("+{}", controller.name())).collect();
    if let Err(e) = fs::write(dir.join("cgroup.subtree_control"), down.join(" ")) {
        // Moves the process back. A failure here does no harm.
        let _ = fs::write(dir.join("cgroup.procs"), &own);
        let _ = fs::remove_dir(&leaf);
        return Err(failed("cannot enable controllers for child cgroups", e));
    }
    Ok(Parent { dir: dir.clone(), controllers })
}

fn marked(dir: &Path) -> bool {
    let Ok(file) = fs::File::open(dir) else { return false };
    let names: [&[u8]; 2] = [b"trusted.delegate", b"user.delegate"];
    names.iter().any(|name| xattr::get(&file, name).ok().flatten().is_some_and(|value| value == b"1"))
}

/// Reports whether groups can be created in a directory. Containers often have the trees mounted read-only.
fn writable(dir: &Path) -> bool {
    let probe = dir.join(own_name("probe"));
    fs::create_dir(&probe).is_ok() && fs::remove_dir(&probe).is_ok()
}

struct Setting {
    file: &'static str,
    value: String,
    needed: bool,
}

/// Returns the settings of one controller, in the order of writing (kernel, admin-guide/cgroup-v2 and
/// cgroup-v1/memory: memory before memory and swap).
fn settings(version: Version, controller: Controller, limits: &Limits) -> Vec<Setting> {
    let setting = |file, value: String, needed| Setting { file, value, needed };
    let memory = limits.memory.to_string();
    match (version, controller) {
        (_, Controller::Memory) if limits.memory == 0 => Vec::new(),
        (Version::Two, Controller::Memory) => vec![
            setting("memory.max", memory, true),
            setting("memory.swap.max", "0".into(), false),
            setting("memory.oom.group", "1".into(), false),
        ],
        (Version::One, Controller::Memory) => vec![
            setting("memory.limit_in_bytes", memory.clone(), true),
            setting("memory.memsw.limit_in_bytes", memory, false),
        ],
        (Version::Two, Controller::Cpu) => vec![setting("cpu.weight", limits.cpu_weight.to_string(), true)],
        // The default weight of 100 corresponds to the default of 1024 shares. The kernel rejects less than
        // 2.
        (Version::One, Controller::Cpu) => {
            let shares = (u64::from(limits.cpu_weight) * 1024 / 100).clamp(2, 262_144);
            vec![setting("cpu.shares", shares.to_string(), true)]
        }
        (_, Controller::Pids) => vec![setting("pids.max", limits.pids.to_string(), true)],
    }
}

/// The group of one child. If it is dropped without [`remove`](Cgroup::remove), its processes are killed and
/// it is removed in the background.
#[derive(Debug)]
pub struct Cgroup {
    version: Version,
    dirs: Vec<Parent>,
    removed: bool,
}

impl Cgroup {
    /// Moves a process into the group. Its future children start there.
    ///
    /// # Errors
    /// Those of writing cgroup.procs.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        self.dirs.iter().try_for_each(|group| fs::write(group.dir.join("cgroup.procs"), pid.to_string()))
    }

    /// Reports whether the kernel killed a process of the group because the group reached its memory limit.
    pub fn ran_out_of_memory(&self) -> bool {
        let file = match self.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let Some(group) = self.dirs.iter().find(|group| group.controllers.contains(&Controller::Memory))
        else {
            return false;
        };
        let text = fs::read_to_string(group.dir.join(file)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|kills| kills.trim().parse::<u64>().ok()).is_some_and(|kills| kills > 0)
    }

    /// Kills the processes in the group and removes it. This blocks until the kernel is done, so do not call
    /// it from async code.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn remove(mut self) -> io::Result<()> {
        self.removed = true;
        // A failure for one directory does not prevent the removal of the others.
        let results: Vec<_> = self.dirs.iter().map(|group| remove(&group.dir)).collect();
        results.into_iter().collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        let dirs: Vec<PathBuf> = self.dirs.drain(..).map(|group| group.dir).collect();
        dirs.iter().for_each(|dir| kill_all(dir));
        // The kernel needs a moment to release the processes, and a drop must not wait. The next daemon
        // removes leftovers.
        std::thread::spawn(move || dirs.iter().for_each(|dir| drop(remove(dir))));
    }
}

/// Kills all processes of a group. Version 2 has a file for this (Linux 5.14). Otherwise each process is
/// killed, and the caller repeats this until none is left.
fn kill_all(dir: &Path) {
    let all = dir.join("cgroup.kill");
    if all.exists() && fs::write(&all, "1").is_ok() {
        return;
    }
    let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
        let _ = signal::end(pid);
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    let until = Instant::now() + REMOVAL;
    loop {
        match fs::remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
        kill_all(dir);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests;
