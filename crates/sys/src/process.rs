//! Settings and properties of this process and this boot.

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

/// Restricts new files and directories of this process and its child programs to the owner, unless a mode is
/// set explicitly. Code that forgets a mode then fails safe.
pub fn restrict_umask() {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
}

/// Gives new inodes exactly the mode of each call, which saves a chmod(2) per file of a layer. Only for a
/// process that passes a mode in every call and starts no program.
pub fn clear_umask() {
    umask(Mode::empty());
}

/// Closes all descriptors above standard error. Call it at the very start of a process: inherited descriptors
/// are unknown, and a directory from outside the sandbox would allow an escape.
///
/// # Errors
/// Those of close_range(2), Linux 5.9.
#[expect(unsafe_code, reason = "no crate wraps close_range(2)")]
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: the program has opened nothing yet, so no value in it owns one of these descriptors.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the limit of open files to the hard limit, because layers and their directories are held by
/// descriptor.
///
/// # Errors
/// Those of getrlimit(2) and setrlimit(2).
pub fn raise_open_files() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Returns the owner and group of new inodes.
pub fn ids() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

/// Returns the CPU time of this process: all threads, user and kernel (time(7)). This is the sum that
/// getrusage(2) returns, but in nanoseconds and up to the current instant.
pub fn processor_time() -> Duration {
    spent(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// Returns the CPU time of the calling thread, user and kernel.
pub fn thread_processor_time() -> Duration {
    spent(ClockId::CLOCK_THREAD_CPUTIME_ID)
}

fn spent(clock: ClockId) -> Duration {
    // This fails only for an unknown clock; these clocks exist since Linux 2.6.12.
    clock_gettime(clock).map(Duration::from).unwrap_or_default()
}

/// Returns the ID of this boot (random(4), boot_id). A different ID means that the machine was restarted in
/// between. The file is read once, so that the ID is still available after confinement.
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

/// Returns the start time of a process in clock ticks since boot (proc_pid_stat(5), starttime). Together with
/// the process ID it identifies the process.
///
/// # Errors
/// Those of reading /proc/PID/stat; `InvalidData` if it has no start time.
pub fn started(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program name, which can contain any character.
    let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok());
    start.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time in /proc/PID/stat"))
}

/// Returns the ID of the group `name`, which can also be a number; `None` if there is no such group.
///
/// # Errors
/// Those of getgrnam_r(3).
pub fn group(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}

/// Makes the kernel kill this process when its parent ends. Returns `false` if the parent has already ended.
/// `parent` is the parent's process ID, if the parent passed it. Without it, an orphan cannot distinguish its
/// new parent from the original one.
///
/// The kernel watches the parent's THREAD that created this process (PR_SET_PDEATHSIG(2const)). That thread
/// must live as long as this process should.
///
/// # Errors
/// Those of prctl(2).
pub fn die_with_parent(parent: Option<u32>) -> io::Result<bool> {
    let id = |pid: Option<Pid>| pid.map_or(0, |pid| pid.as_raw_nonzero().get());
    let before = id(getppid());
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that ended before the call sends no signal.
    let now = id(getppid());
    Ok(now == before && parent.is_none_or(|parent| i64::from(parent) == i64::from(now)))
}

/// Lowers the priority to `nice` (0 to 19, nice(1)) for the calling thread and the threads that it creates
/// later. On Linux the priority belongs to the thread (setpriority(2)). A priority that is already lower is
/// kept, because raising it requires a capability.
///
/// # Errors
/// Those of getpriority(2) and setpriority(2).
pub fn lower_priority(nice: u8) -> io::Result<()> {
    if getpriority_process(None)? >= i32::from(nice) {
        return Ok(());
    }
    Ok(setpriority_process(None, i32::from(nice))?)
}

/// Makes the OOM killer prefer this process: raises its score to `score`, out of 1000
/// (proc_pid_oom_score_adj(5)). A higher score is kept.
///
/// # Errors
/// Those of reading and writing the file.
pub fn raise_oom_score(score: i32) -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(FILE)?;
    if now.trim().parse().is_ok_and(|now: i32| now >= score) {
        return Ok(());
    }
    std::fs::write(FILE, score.to_string())
}
