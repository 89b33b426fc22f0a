//! Namespaces of a confined process (namespaces(7)): mounts, processes, IPC and host name, and no network
//! unless the role needs one.

use std::{fs, io};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};

use super::init::{self, Signals};
use super::root;
use crate::process;

/// Method of creating the namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// With the caller's `CAP_SYS_ADMIN`. Other capabilities stay effective.
    Privilege,
    /// In a new user namespace that maps the caller's IDs to themselves. Capabilities have no effect outside
    /// it.
    UserNamespace,
}

/// Creates namespaces for this process, which must have one thread, and continues as the first process in
/// them.
///
/// # Errors
/// Those of unshare(2), of the files of user_namespaces(7) and of fork(2): `EPERM` if the system forbids
/// namespaces to this user.
pub(super) fn enter(method: Method, network: bool, signals: Signals) -> io::Result<()> {
    let ids = process::ids();
    let mut flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if !network {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if method == Method::UserNamespace {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags)?;
    isolate(method, ids)?;
    init::become_first(signals)
}

/// Tests in a child process whether [`enter`] and a new root will work, because they cannot be undone. Some
/// systems allow namespaces but forbid mounts in them (AppArmor).
///
/// # Errors
/// The reason why they will not work.
pub(super) fn probe(method: Method) -> io::Result<()> {
    let ids = process::ids();
    init::in_child(|| {
        let user =
            if method == Method::UserNamespace { CloneFlags::CLONE_NEWUSER } else { CloneFlags::empty() };
        unshare(CloneFlags::CLONE_NEWNS | user)?;
        isolate(method, ids)?;
        root::probe()
    })
}

/// Maps the IDs of a user namespace, and stops mounts of this process from propagating to others.
fn isolate(method: Method, (uid, gid): (u32, u32)) -> io::Result<()> {
    if method == Method::UserNamespace {
        // The group can be mapped only after this (user_namespaces(7), "Writing to /proc/pid/gid_map").
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    // Mounts made here do not propagate to the parent. A disk that the parent mounts later for layer reuse
    // still propagates here.
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    Ok(nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)?)
}
