//! Mount attributes by descriptor (mount_setattr(2), Linux 5.12).

#![expect(unsafe_code, reason = "no crate wraps mount_setattr(2)")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, RawFd};

use rustix::mount::MountAttrFlags;

/// Adds `attributes` to the mount behind `mount`, and to the mounts below it if `recursive`. No attribute is
/// cleared. A mount that is not attached yet is never visible without them.
///
/// # Errors
/// Those of mount_setattr(2); `ENOSYS` before Linux 5.12.
pub fn add(mount: impl AsFd, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
    set(mount.as_fd().as_raw_fd(), attributes, recursive)
}

/// Reports whether this kernel has mount_setattr(2).
pub fn is_supported() -> bool {
    let error = set(-1, MountAttrFlags::empty(), false).err().and_then(|e| e.raw_os_error());
    error != Some(libc::ENOSYS)
}

fn set(mount: RawFd, attributes: MountAttrFlags, recursive: bool) -> io::Result<()> {
    let set =
        libc::mount_attr { attr_set: attributes.bits().into(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel checks the descriptor, the path is a constant C string, and the last argument is the
    // size of the structure.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            flags,
            &raw const set,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
