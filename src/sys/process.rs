//! Settings and facts of this process and this boot.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Group, getegid, geteuid};

/// Modes of new inodes are exactly what is asked for from now on.
pub fn clear_umask() {
    umask(Mode::empty());
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

/// A name of this boot (random(4), boot_id): another value means that the machine went down in between.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The number of a group that is named, or given as a number.
pub fn group(name: &str) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}
