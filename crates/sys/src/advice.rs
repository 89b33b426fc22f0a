//! Read-ahead hints for the kernel (posix_fadvise(2)).

use std::fs::File;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Maximum number of bytes to request. The kernel's own read-ahead covers the rest.
const MAX_BYTES: i64 = 1 << 20;

/// Starts reading a file that will be needed soon. Errors are ignored, because the later reads report them.
pub fn will_read(file: &File) {
    let _ = posix_fadvise(file, 0, MAX_BYTES, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
}
