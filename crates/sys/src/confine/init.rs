//! The first process of a PID namespace (pid_namespaces(7)), and the one outside that stands for it.

#![expect(unsafe_code, reason = "fork(2) has no safe form")]

use std::io;
use std::process;

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

/// Signals that are passed on.
const PASSED: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// What the signals that end a process do to a confined one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// They end it at once.
    End,
    /// It has handlers, and unblocks them ([`unblock`]) once they are there.
    Handled,
}

/// Lets signals through that wait since [`Confinement::enter`](super::Confinement::enter). Their handlers must be there.
///
/// # Errors
/// Those of pthread_sigmask(3), which there are none of.
pub fn unblock() -> io::Result<()> {
    Ok(SigSet::from_iter(PASSED).thread_unblock()?)
}

/// Does `work` in a child, and returns what came of it: an error has the number of the child's.
///
/// # Errors
/// Those of `work`, and of fork(2) and waitpid(2).
#[expect(clippy::exit, reason = "the child is nothing but the work")]
pub(super) fn in_child(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: the process has one thread, so the child has all of it; it ends here.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let number = work().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
            process::exit(number)
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, number) => Err(io::Error::from_raw_os_error(number)),
            _ => Err(io::Error::other("the process that tried it was killed")),
        },
    }
}

/// Continues in a child, which is the first process of the namespace that this process made for its children. The caller's
/// process stays outside, passes signals on and ends as the child does. The child is killed with it.
///
/// # Errors
/// Those of fork(2) and of the calls around it. The caller must end then.
pub(super) fn become_first(signals: Signals) -> io::Result<()> {
    let mut watched = SigSet::from_iter(PASSED);
    watched.add(Signal::SIGCHLD);
    let before = watched.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let (lives, held) = pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the process has one thread, so the child has all of it and may go on as the parent would have.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(held);
            set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // A handler unblocks them when it is there: one that came before would be ignored.
            if signals == Signals::End {
                before.thread_set_mask()?;
            }
            // A parent that ended before the call sends no signal, and its number is unknown in the new namespace.
            let mut parent = [PollFd::new(&lives, PollFlags::empty())];
            if poll(&mut parent, Some(&Timespec::default()))? > 0 {
                return Err(io::Error::other("the process that started this one has ended"));
            }
            Ok(())
        }
        ForkResult::Parent { child } => {
            drop(lives);
            stand_for(child, &watched, signals)
        }
    }
}

#[expect(clippy::exit, reason = "this process is nothing but the child's place outside")]
fn stand_for(child: Pid, watched: &SigSet, signals: Signals) -> ! {
    // It holds what the child held at the fork; no copy of that is written out.
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
                // It may have ended by itself. The first process of a namespace ignores what it has no handler for.
                let _ = kill(child, if signals == Signals::Handled { signal } else { Signal::SIGKILL });
                if signals == Signals::End {
                    end_by(signal);
                }
            }
            Err(_) => process::exit(1),
        }
    }
}

/// Ends this process by `signal`, so that its parent sees what happened to the child.
#[expect(clippy::exit, reason = "the signal may be one that ends nothing")]
fn end_by(signal: Signal) -> ! {
    let _ = SigSet::from_iter([signal]).thread_unblock();
    let _ = raise(signal);
    process::exit(128 + signal as i32)
}
