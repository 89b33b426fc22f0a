//! Telling the kernel what will be read (posix_fadvise(2)).

use std::fs::File;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Most bytes that are asked for: what follows is read ahead by the kernel's own rules.
const MOST: i64 = 1 << 20;

/// Begins to read a file that will be wanted soon. Advice: where it cannot be followed, the reads themselves will tell.
pub fn will_read(file: &File) {
    let _ = posix_fadvise(file, 0, MOST, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
}
