//! Signals to processes that this one started (kill(2)).

use std::io;
use std::os::unix::process::ExitStatusExt as _;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// Asks a process to end (SIGTERM).
pub fn terminate(pid: u32) -> io::Result<()> {
    Ok(kill(process(pid)?, Signal::SIGTERM)?)
}

/// Whether a process ended by [`terminate`], which it did not listen to.
pub fn ended_by_request(status: std::process::ExitStatus) -> bool {
    status.signal() == Some(Signal::SIGTERM as i32)
}

/// Ends a process (SIGKILL).
pub fn end(pid: u32) -> io::Result<()> {
    Ok(kill(process(pid)?, Signal::SIGKILL)?)
}

/// Ends every process of a group (SIGKILL).
pub fn end_group(leader: u32) -> io::Result<()> {
    Ok(killpg(process(leader)?, Signal::SIGKILL)?)
}

/// 0 and -1 stand for groups and for everything, and 1 is never ours.
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
