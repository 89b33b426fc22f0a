//! Namespaces of a confined process (namespaces(7)): mounts, processes, IPC, host name, and no network unless it needs one.

use std::fs;
use std::io;

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};

use super::init::{self, Signals};
use super::root;
use crate::process;

/// How the namespaces are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// With the caller's `CAP_SYS_ADMIN`. Other capabilities keep their meaning.
    Privilege,
    /// In a new user namespace that maps the caller's IDs onto themselves. Capabilities mean nothing outside of it.
    UserNamespace,
}

/// Gives this process namespaces of its own and continues as the first process in them. There must be one thread.
///
/// # Errors
/// Those of unshare(2), of the files of user_namespaces(7) and of fork(2): `EPERM` if the system forbids namespaces to this user.
pub(super) fn enter(by: By, network: bool, signals: Signals) -> io::Result<()> {
    let ids = process::ids();
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
    unshare(flags)?;
    settle(by, ids)?;
    init::become_first(signals)
}

/// Whether this process may do what [`enter`] and a new root take: some systems allow namespaces and forbid mounts in them
/// (AppArmor). A child tries, because nothing of it can be undone.
///
/// # Errors
/// Why it may not.
pub(super) fn probe(by: By) -> io::Result<()> {
    let ids = process::ids();
    init::in_child(|| {
        let user = if by == By::UserNamespace { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
        unshare(CloneFlags::CLONE_NEWNS | user)?;
        settle(by, ids)?;
        root::probe()
    })
}

/// Maps the IDs of a user namespace, and separates the mounts of this process from those of others.
fn settle(by: By, (uid, gid): (u32, u32)) -> io::Result<()> {
    if by == By::UserNamespace {
        // One's own group may be mapped only after this (user_namespaces(7), "Writing to /proc/pid/gid_map").
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    // Nothing that is mounted here gets out. A disk that the parent mounts later, for layers to be reused, still gets in.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)?)
}
