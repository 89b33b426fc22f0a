//! The three ioctls of loop(4) that attaching takes; no crate has a safe form of them that does not parse headers when it is
//! built.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, LOOP_CONFIGURE, LOOP_CTL_GET_FREE,
    LOOP_GET_STATUS64, loop_config, loop_info64,
};
use nix::errno::Errno;

use super::Access;

/// Logical block of a device, bytes: what ext4 has, and no smaller than what direct I/O asks of any disk.
const BLOCK: u32 = 4096;

mod calls {
    #![allow(unsafe_code, reason = "nix makes these functions unsafe; each call below says why it is sound")]
    #![allow(missing_docs, unreachable_pub, reason = "made by nix")]

    nix::ioctl_none_bad!(get_free, super::LOOP_CTL_GET_FREE);
    nix::ioctl_write_ptr_bad!(configure, super::LOOP_CONFIGURE, super::loop_config);
    nix::ioctl_read_bad!(status, super::LOOP_GET_STATUS64, super::loop_info64);
}

/// What a device says of itself.
pub(super) struct Status {
    /// Device and inode number of its file.
    pub(super) file: (u64, u64),
    pub(super) writes: bool,
    pub(super) direct: bool,
}

/// The number of a device that is free now; one is made where all are in use.
pub(super) fn free(control: &File) -> io::Result<i32> {
    #[expect(unsafe_code, reason = "LOOP_CTL_GET_FREE has no safe form")]
    // SAFETY: the call takes no argument and changes no memory of ours.
    let number = unsafe { calls::get_free(control.as_raw_fd()) }?;
    Ok(number)
}

/// Attaches `backing` to `device`; `EBUSY` where somebody else was first.
pub(super) fn configure(device: &File, backing: &File, access: Access) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    #[expect(unsafe_code, reason = "structures of the kernel's are made of zeros")]
    // SAFETY: `loop_config` is plain integers, for which zero is a value.
    let mut config: loop_config = unsafe { MaybeUninit::zeroed().assume_init() };
    config.fd = fd;
    config.block_size = BLOCK;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR as u32 | LO_FLAGS_DIRECT_IO as u32;
    if access == Access::ReadOnly {
        config.info.lo_flags |= LO_FLAGS_READ_ONLY as u32;
    }
    #[expect(unsafe_code, reason = "LOOP_CONFIGURE has no safe form")]
    // SAFETY: the pointer is to a whole structure that outlives the call, which only reads it, and both descriptors are
    // open for as long.
    unsafe { calls::configure(device.as_raw_fd(), &raw const config) }?;
    Ok(())
}

/// What `device` has attached; `ENXIO` where that is nothing.
pub(super) fn status(device: &File) -> io::Result<Status> {
    #[expect(unsafe_code, reason = "LOOP_GET_STATUS64 has no safe form")]
    // SAFETY: `loop_info64` is plain integers, for which zero is a value; the pointer is to a whole structure that outlives
    // the call, which fills it.
    let info = unsafe {
        let mut info: loop_info64 = MaybeUninit::zeroed().assume_init();
        calls::status(device.as_raw_fd(), &raw mut info)?;
        info
    };
    let has = |flag: u32| info.lo_flags & flag != 0;
    Ok(Status {
        file: (info.lo_device, info.lo_inode),
        writes: !has(LO_FLAGS_READ_ONLY as u32),
        direct: has(LO_FLAGS_DIRECT_IO as u32),
    })
}
