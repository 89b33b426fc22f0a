//! ioctl(2) with FS_IOC_FIEMAP, which neither nix nor rustix provides (linux/fiemap.h).

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// Maximum number of extents per call, which take 14 KiB of stack.
pub(super) const BATCH: u32 = 256;

/// `FIEMAP_EXTENT_LAST`: the last extent of the file.
pub(super) const LAST: u32 = 0x1;
/// `FIEMAP_EXTENT_UNKNOWN`: not allocated on disk yet.
pub(super) const UNKNOWN: u32 = 0x2;
/// `FIEMAP_EXTENT_ENCODED`: the bytes on disk differ from those of the file.
pub(super) const ENCODED: u32 = 0x8;
/// `FIEMAP_EXTENT_NOT_ALIGNED`: stored among metadata.
pub(super) const NOT_ALIGNED: u32 = 0x100;

/// One extent: `struct fiemap_extent` of linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Raw {
    pub(super) logical: u64,
    pub(super) physical: u64,
    pub(super) length: u64,
    reserved64: [u64; 2],
    pub(super) flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, followed by room for extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Raw; BATCH as usize],
}

/// Size of `struct fiemap` without extents, which is part of the request number.
const HEADER: usize = 32;

/// Returns the next extents from the offset `start` on.
pub(super) fn map(file: BorrowedFd<'_>, start: u64) -> Result<Vec<Raw>, Errno> {
    let mut request = Request {
        start,
        length: u64::MAX - start,
        flags: 0,
        mapped_extents: 0,
        extent_count: BATCH,
        reserved: 0,
        extents: [Raw::default(); BATCH as usize],
    };
    let code = nix::request_code_readwrite!(b'f', 11, HEADER);
    #[expect(unsafe_code, reason = "neither nix nor rustix has FIEMAP")]
    // SAFETY: the kernel reads and writes the header, and writes at most `extent_count` extents after it, for
    // which there is room. The structure is plain integers laid out as in linux/fiemap.h and outlives the
    // call.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), code, &raw mut request) };
    Errno::result(answer)?;
    let mapped = request.mapped_extents.min(BATCH) as usize;
    Ok(request.extents[..mapped].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(std::mem::size_of::<Raw>(), 56);
        assert_eq!(std::mem::offset_of!(Request, extents), HEADER);
        assert_eq!(std::mem::offset_of!(Raw, flags), 40);
    }
}
