//! Settings and facts of this process and this boot.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Group, getegid, geteuid};
use rustix::process::{
    Pid, Signal, getppid, getpriority_process, set_parent_process_death_signal, setpriority_process,
};

/// Makes new files and directories of this process, and of the programs that it starts, the owner's alone unless a mode is set
/// explicitly. Code that forgets a mode then fails safe.
pub fn restrict_umask() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Lets new inodes have exactly the mode that each call names, which saves a chmod(2) for each file of a layer. Only for a
/// process that names a mode in every call and starts no program.
pub fn clear_umask() {
    umask(Mode::empty());
}

/// Closes all descriptors above standard error. For a process at its very start: what it inherited could be anything, and a
/// directory from outside of a sandbox leads out of it.
///
/// # Errors
/// Those of close_range(2), Linux 5.9.
#[expect(unsafe_code, reason = "no crate wraps close_range(2)")]
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the program has opened nothing yet, so no value in it owns one of these descriptors.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the number of open files to the hard limit: layers and their directories are held by descriptor.
pub fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Owner and group that new inodes get.
pub fn ids() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// What processors have spent on this process, all its threads, user and kernel (time(7)): the sum that getrusage(2) gives, but in
/// nanoseconds and up to now.
pub fn processor_time() -> Duration {
    spent(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// The same of the calling thread alone.
pub fn thread_processor_time() -> Duration {
    spent(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn spent(clock: ClockId) -> Duration {
    // Fails only for a clock that the kernel does not have; these came with Linux 2.6.12.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// A name of this boot (random(4), boot_id): another value means that the machine went down in between. It is read once, so that
/// a process that is confined later still has it.
///
/// # Errors
/// Those of reading the file.
pub fn boot_id() -> io::Result<String> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id.clone());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT_ID.get_or_init(|| id).clone())
}

/// When a process was started, clock ticks since boot (proc_pid_stat(5), starttime): with its number this is its name.
pub fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name of its program, in which anything may stand.
    let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
    start.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat"))
}

/// The number of a group that is named, or given as a number.
pub fn group(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// Has the kernel kill this process when its parent ends; false if the parent is gone already. `parent` is its process ID,
/// where the parent told it: only then is it known that the present parent is the one that started us, and not whoever
/// inherits orphans.
///
/// The kernel means the parent's THREAD that made this process (PR_SET_PDEATHSIG(2const)): it must live as long as this
/// process is to live.
pub fn die_with_parent(parent: Option<u32>) -> io::Result<bool> {
    let id = |pid: Option<Pid>| pid.map_or(0, |pid| pid.as_raw_nonzero().get());
    let before = id(getppid());
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that ended before the call sends no signal.
    let now = id(getppid());
    Ok(now == before && parent.is_none_or(|parent| i64::from(parent) == i64::from(now)))
}

/// Lowers the priority to `nice` (0 to 19, nice(1)) for the calling thread and those it makes from now on: on Linux it
/// belongs to the thread (setpriority(2)). One that is lower already stays: to raise it takes a capability.
pub fn be_nice(nice: u8) -> io::Result<()> {
    if getpriority_process(None)? >= i32::from(nice) {
        return Ok(());
    }
    Ok(setpriority_process(None, i32::from(nice))?)
}

/// Has the kernel take this process before others when memory is short: raises its score to `score`, of 1000
/// (proc_pid_oom_score_adj(5)). A score that is higher already stays.
pub fn offer_to_oom_killer(score: i32) -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(FILE)?;
    if now.trim().parse().is_ok_and(|now: i32| now >= score) {
        return Ok(());
    }
    std::fs::write(FILE, score.to_string())
}
