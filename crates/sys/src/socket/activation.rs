//! Socket activation: a service manager listens and passes the socket to the service (sd_listen_fds(3)).
//! Clients wait in its queue while the service starts or restarts.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::{io, process};

use rustix::net::{AddressFamily, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Returns the non-blocking Unix socket that the service manager passed to this process; `None` if there is
/// none.
///
/// # Errors
/// `InvalidInput` if there are several sockets, or one that is not a listening Unix socket; those of
/// pidfd_getfd(2) (Linux 5.6).
pub fn listener() -> io::Result<Option<UnixListener>> {
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let mut handed = sd_notify::listen_fds()?;
    let Some(number) = handed.next() else { return Ok(None) };
    if handed.next().is_some() {
        return Err(wrong("the service manager passed several sockets: set exactly one ListenStream="));
    }
    // The descriptor is duplicated, because its number does not prove that nothing else in this process uses
    // it.
    let this = i32::try_from(process::id()).ok().and_then(Pid::from_raw);
    let this = pidfd_open(this.ok_or_else(|| wrong("this process has no process ID"))?, PidfdFlags::empty())?;
    let socket: OwnedFd = pidfd_getfd(this, number, PidfdGetfdFlags::empty())?;
    let is_unix = sockopt::socket_domain(&socket).is_ok_and(|domain| domain == AddressFamily::UNIX);
    if !is_unix || !sockopt::socket_acceptconn(&socket)? {
        return Err(wrong(
            "the service manager did not pass a listening Unix socket: set a path in ListenStream=",
        ));
    }
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}
