//! The file system alone: creating files, writing contents and syncing both.

use std::io::{self, Write as _};
use std::time::Duration;

use super::stopwatch::Stopwatch;
use super::workdir::WorkDir;
use crate::builder::cancel::Cancel;
use larder_model::bench_report::{Elapsed, approximate};
use larder_model::event::Failure;
use larder_model::io_error::{FileRole, class};
use larder_sys::dir::{Dir, set_times};
use larder_sys::stat::Timestamp;

/// Maximum number of files that are created.
const MAX_NAMES: u64 = 100_000;

/// Maximum number of bytes that are written.
pub(super) const MAX_BYTES: u64 = 2 << 30;

/// Number of files per directory.
const FILES_PER_DIRECTORY: u64 = 100;

/// Size of a file, bytes.
const FILE_SIZE: u64 = 64 << 20;

/// Bytes written by one call, as by a decoder.
const BUFFER: usize = 256 << 10;

/// A time in the past, as files from images have.
const TIME: Timestamp = Timestamp { sec: 1_600_000_000, nsec: 0 };

/// The files and bytes of an image that are created. Both have the same fraction of the image, so that one
/// sync covers both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) names: u64,
    pub(super) bytes: u64,
    /// Fraction of the image, above 0 and at most 1.
    pub(super) of_image: f64,
}

impl Sample {
    /// Returns as much of `names` and `bytes` as the limits allow.
    pub(super) fn of(names: u64, bytes: u64) -> Self {
        let of = |max: u64, all: u64| super::fraction(max.min(all), all);
        let of_image = of(MAX_NAMES, names).min(of(MAX_BYTES, bytes));
        Sample { names: part(names, of_image), bytes: part(bytes, of_image), of_image }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a count is a count, and none is less"
)]
fn part(all: u64, fraction: f64) -> u64 {
    (approximate(all) * fraction).round() as u64
}

/// Creates `count` empty files. Uses the system calls of the sink for a file without content: openat(2),
/// utimensat(2), close(2).
pub(super) fn create(workdir: &WorkDir, count: u64, cancel: &Cancel) -> Result<Elapsed, Failure> {
    let top = workdir.make_names()?;
    let watch = Stopwatch::start();
    for first in (0..count).step_by(usize::try_from(FILES_PER_DIRECTORY).unwrap_or(1)) {
        super::check_cancelled(cancel)?;
        files(&top, first..count.min(first + FILES_PER_DIRECTORY))
            .map_err(|e| fail("creating empty files", &e))?;
    }
    Ok(watch.took(Duration::ZERO))
}

fn files(top: &Dir, numbers: std::ops::Range<u64>) -> io::Result<()> {
    let name = format!("directory-{}", numbers.start);
    top.make_dir(name.as_bytes(), 0o755)?;
    let dir = top.open_dir(name.as_bytes())?;
    for number in numbers {
        let file = dir.create_file(format!("file-{number}").as_bytes(), 0o644)?;
        set_times(&file, TIME)?;
    }
    Ok(())
}

/// Writes `bytes` bytes to as few files as possible.
pub(super) fn write(workdir: &WorkDir, bytes: u64, cancel: &Cancel) -> Result<Elapsed, Failure> {
    let dir = workdir.make_bytes()?;
    let buffer = noise();
    let watch = Stopwatch::start();
    for start in (0..bytes).step_by(usize::try_from(FILE_SIZE).unwrap_or(usize::MAX)) {
        let failed = |e: io::Error| fail("writing contents", &e);
        let mut file = dir.create_file(format!("file-{start}").as_bytes(), 0o644).map_err(failed)?;
        let mut left = FILE_SIZE.min(bytes - start);
        while left > 0 {
            super::check_cancelled(cancel)?;
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            file.write_all(&buffer[..length]).map_err(failed)?;
            left -= length as u64;
        }
    }
    Ok(watch.took(Duration::ZERO))
}

/// Syncs the files and their contents.
pub(super) fn sync(workdir: &WorkDir) -> Result<Elapsed, Failure> {
    let watch = Stopwatch::start();
    workdir.sync()?;
    Ok(watch.took(Duration::ZERO))
}

/// Returns a buffer of incompressible data (xorshift64), because some file systems compress data or do not
/// write zeros.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(BUFFER / 8).flatten().collect()
}

fn fail(doing: &str, error: &io::Error) -> Failure {
    Failure::job(
        class(error, FileRole::Own),
        format!("{doing}: {error}: check that the file system has enough free space and inodes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_have_the_same_share() {
        assert_eq!(Sample::of(10, 1000), Sample { names: 10, bytes: 1000, of_image: 1.0 });
        assert_eq!(Sample::of(0, 0), Sample { names: 0, bytes: 0, of_image: 1.0 });
        assert_eq!(
            Sample::of(1_000_000, 1 << 30),
            Sample { names: 100_000, bytes: 107_374_182, of_image: 0.1 }
        );
        assert_eq!(Sample::of(20, 4 << 30), Sample { names: 10, bytes: 2 << 30, of_image: 0.5 });
    }

    #[test]
    fn creates_the_requested_number_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let workdir = WorkDir::make(dir.path()).unwrap();
        let cancel = Cancel::new();
        let took = create(&workdir, 250, &cancel).unwrap();
        assert!(took.wall_seconds > 0.0);
        write(&workdir, FILE_SIZE + 1, &cancel).unwrap();
        sync(&workdir).unwrap();
        let own = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let inside = |name: &str| std::fs::read_dir(own.join(name)).unwrap().map(|entry| entry.unwrap());
        assert_eq!(inside("names").count(), 3);
        let made: usize = inside("names").map(|of| std::fs::read_dir(of.path()).unwrap().count()).sum();
        assert_eq!(made, 250);
        let mut sizes: Vec<u64> = inside("bytes").map(|file| file.metadata().unwrap().len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, FILE_SIZE]);
        workdir.remove();
    }

    #[test]
    fn stops_when_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let workdir = WorkDir::make(dir.path()).unwrap();
        let cancel = Cancel::new();
        cancel.cancel(crate::builder::cancel::Reason::Interrupt);
        assert_eq!(create(&workdir, 1, &cancel).unwrap_err().class, larder_model::class::Class::Cancelled);
        assert_eq!(write(&workdir, 1, &cancel).unwrap_err().class, larder_model::class::Class::Cancelled);
        workdir.remove();
    }
}
