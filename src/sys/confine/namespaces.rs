//! Namespaces of a confined process (namespaces(7)): mounts, processes, IPC, host name, and no network unless it needs one.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};

use super::init;
use crate::sys::process;

/// How the namespaces are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// With the caller's `CAP_SYS_ADMIN`. Other capabilities keep their meaning.
    Privilege,
    /// In a new user namespace that maps the caller's IDs onto themselves. Capabilities mean nothing outside of it.
    UserNamespace,
}

/// Gives this process namespaces of its own and continues as the first process in them. There must be one thread.
/// The process that stays outside removes the empty directory `temporary` at the end.
///
/// # Errors
/// Those of unshare(2), of the files of user_namespaces(7) and of fork(2): `EPERM` if the system forbids namespaces to this user.
pub(super) fn enter(by: By, network: bool, temporary: Option<&Path>) -> io::Result<()> {
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if !network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if by == By::UserNamespace {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    let (uid, gid) = process::ids();
    unshare(flags)?;
    if by == By::UserNamespace {
        // One's own group may be mapped only after this (user_namespaces(7), "Writing to /proc/pid/gid_map").
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    // Nothing that is mounted here gets out. A disk that the parent mounts later, for layers to be reused, still gets in.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)?;
    init::become_first(temporary)
}
