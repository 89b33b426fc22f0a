//! The first process of a PID namespace (pid_namespaces(7)), and the process outside that represents it.

#![expect(unsafe_code, reason = "fork(2) has no safe form")]

use std::{io, process};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::set_parent_process_death_signal;
use rustix::thread::CapabilitySet;

use super::capabilities;

/// Signals that are forwarded to the child.
const FORWARDED: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// Effect of termination signals on a confined process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// The signals terminate the process at once.
    End,
    /// The process has handlers, and calls [`unblock`] once they are installed.
    Handled,
}

/// Unblocks the signals that have been blocked since [`Confinement::enter`](super::Confinement::enter). Their
/// handlers must be installed.
///
/// # Errors
/// Those of pthread_sigmask(3), which does not fail here.
pub fn unblock() -> io::Result<()> {
    Ok(SigSet::from_iter(FORWARDED).thread_unblock()?)
}

/// Runs `work` in a child process and returns its result. An error has the errno of the child's error.
///
/// # Errors
/// Those of `work`, and of fork(2) and waitpid(2).
#[expect(clippy::exit, reason = "the child runs only the work")]
pub(super) fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the process has one thread, so the child is a complete copy of it. The child exits below.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let number = work().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            process::exit(number)
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, number) => Err(io::Error::from_raw_os_error(number)),
            _ => Err(io::Error::other("the test process was killed")),
        },
    }
}

/// Continues in a child, which becomes the first process of the PID namespace that this process created for
/// its children. The original process stays outside, forwards signals and exits as the child does. The child
/// is killed when it dies.
///
/// # Errors
/// Those of fork(2) and of the calls around it. The caller must then exit.
pub(super) fn become_first(signals: Signals) -> io::Result<()> {
    let mut watched = SigSet::from_iter(FORWARDED);
    watched.add(Signal::SIGCHLD);
    let before = watched.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let (lives, held) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the process has one thread, so the child is a complete copy of it and can continue as the
    // parent would have.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(held);
            set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The child unblocks the signals once its handlers are installed. A signal before that would be
            // ignored.
            if signals == Signals::End {
                before.thread_set_mask()?;
            }
            // A parent that ended before the call sends no signal, and its process ID is not visible in the
            // new namespace.
            let mut parent = [PollFd::new(&lives, PollFlags::empty())];
            if poll(&mut parent, Some(&Timespec::default()))? > 0 {
                return Err(io::Error::other("the parent process has ended"));
            }
            Ok(())
        }
        ForkResult::Parent { child } => {
            drop(lives);
            represent_child(child, &watched, signals)
        }
    }
}

#[expect(clippy::exit, reason = "this process only represents the child outside")]
fn represent_child(child: Pid, watched: &SigSet, signals: Signals) -> ! {
    // This process has a copy of the child's memory at the fork, which must not end up in a core file.
    let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    let _ = capabilities::reduce(CapabilitySet::empty());
    loop {
        match watched.wait() {
            Ok(Signal::SIGCHLD) => match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => process::exit(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => end_by(signal),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => process::exit(1),
            },
            Ok(signal) => {
                // The child may have exited by itself. The first process of a namespace ignores signals
                // without a handler.
                let _ = kill(child, if signals == Signals::Handled { signal } else { Signal::SIGKILL });
                if signals == Signals::End {
                    end_by(signal);
                }
            }
            Err(_) => process::exit(1),
        }
    }
}

/// Ends this process by `signal`, so that its parent sees how the child ended.
#[expect(clippy::exit, reason = "the signal might not terminate the process")]
fn end_by(signal: Signal) -> ! {
    let _ = SigSet::from_iter([signal]).thread_unblock();
    let _ = raise(signal);
    process::exit(128 + signal as i32)
}
