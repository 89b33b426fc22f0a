//! Signals to child processes (kill(2)).

use std::io;
use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Requests that a process terminates (SIGTERM).
///
/// # Errors
/// Those of kill(2); `InvalidInput` for a process ID that does not name a single process.
pub fn terminate(pid: u32) -> io::Result<()> {
    Ok(kill(process(pid)?, Signal::SIGTERM)?)
}

/// Reports whether a process was killed by [`terminate`], because it has no handler for SIGTERM.
pub fn ended_by_request(status: std::process::ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGTERM as i32)
}

/// Kills a process (SIGKILL).
///
/// # Errors
/// Those of kill(2); `InvalidInput` for a process ID that does not name a single process.
pub fn end(pid: u32) -> io::Result<()> {
    Ok(kill(process(pid)?, Signal::SIGKILL)?)
}

/// Kills every process of a process group (SIGKILL).
///
/// # Errors
/// Those of killpg(3); `InvalidInput` for a process ID that does not name a single process.
pub fn end_group(leader: u32) -> io::Result<()> {
    Ok(killpg(process(leader)?, Signal::SIGKILL)?)
}

/// Rejects 0 and -1, which mean groups and all processes, and 1, which is never a child of this process.
fn process(pid: u32) -> io::Result<Pid> {
    match i32::try_from(pid) {
        Ok(pid) if pid > 1 => Ok(Pid::from_raw(pid)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_process_is_meant() {
        for pid in [0, 1, u32::MAX, 1 << 31] {
            assert_eq!(terminate(pid).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{pid}");
        }
    }
}
