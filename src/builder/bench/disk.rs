//! The file system alone: names, contents, and making both durable.

use std::io::{self, Write as _};
use std::time::Duration;

use super::place::Place;
use super::stopwatch::Stopwatch;
use crate::builder::cancel::Cancel;
use crate::builder::failure::Fail;
use larder_layer::error::io_class;
use larder_model::bench_report::{Took, approximate};
use larder_sys::dir::{Dir, set_times};
use larder_sys::stat::Timestamp;

/// Most files that are really made.
const MOST_NAMES: u64 = 100_000;

/// Most bytes that are really written.
pub(super) const MOST_BYTES: u64 = 2 << 30;

/// Files in a directory.
const IN_DIRECTORY: u64 = 100;

/// Bytes of a file.
const FILE: u64 = 64 << 20;

/// Bytes written by one call, as a decoder gives them to a sink.
const BUFFER: usize = 256 << 10;

/// The time of files from images is one of the past.
const TIME: Timestamp = Timestamp { sec: 1_600_000_000, nsec: 0 };

/// Names and bytes of an image that are really made: the same share of both, so that one sync covers what belongs together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Share {
    pub(super) names: u64,
    pub(super) bytes: u64,
    /// Above 0 and at most 1.
    pub(super) of_image: f64,
}

impl Share {
    /// As much of `names` and `bytes` as the bounds allow.
    pub(super) fn of(names: u64, bytes: u64) -> Self {
        let of = |most: u64, all: u64| super::share(most.min(all), all);
        let of_image = of(MOST_NAMES, names).min(of(MOST_BYTES, bytes));
        Share { names: part(names, of_image), bytes: part(bytes, of_image), of_image }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of a count is a count, and none is less"
)]
fn part(all: u64, share: f64) -> u64 {
    (approximate(all) * share).round() as u64
}

/// Makes `count` empty files with the system calls of the sink for a file without content: openat(2), utimensat(2), close(2).
pub(super) fn create(place: &Place, count: u64, cancel: &Cancel) -> Result<Took, Fail> {
    let top = place.make_names()?;
    let watch = Stopwatch::start();
    for first in (0..count).step_by(usize::try_from(IN_DIRECTORY).unwrap_or(1)) {
        super::go_on(cancel)?;
        files(&top, first..count.min(first + IN_DIRECTORY)).map_err(|e| fail("creating empty files", &e))?;
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

/// Writes `bytes` bytes to as few files as it takes.
pub(super) fn write(place: &Place, bytes: u64, cancel: &Cancel) -> Result<Took, Fail> {
    let dir = place.make_bytes()?;
    let buffer = noise();
    let watch = Stopwatch::start();
    for start in (0..bytes).step_by(usize::try_from(FILE).unwrap_or(usize::MAX)) {
        let failed = |e: io::Error| fail("writing contents", &e);
        let mut file = dir.create_file(format!("file-{start}").as_bytes(), 0o644).map_err(failed)?;
        let mut left = FILE.min(bytes - start);
        while left > 0 {
            super::go_on(cancel)?;
            let length = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            file.write_all(&buffer[..length]).map_err(failed)?;
            left -= length as u64;
        }
    }
    Ok(watch.took(Duration::ZERO))
}

/// Makes both durable.
pub(super) fn sync(place: &Place) -> Result<Took, Fail> {
    let watch = Stopwatch::start();
    place.sync()?;
    Ok(watch.took(Duration::ZERO))
}

/// A buffer of what does not compress (xorshift64): some file systems do not write zeros, or compress.
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

fn fail(doing: &str, error: &io::Error) -> Fail {
    Fail::job(io_class(error), format!("{doing}: {error}: the file system may want more room or more inodes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bytes_have_the_same_share() {
        assert_eq!(Share::of(10, 1000), Share { names: 10, bytes: 1000, of_image: 1.0 });
        assert_eq!(Share::of(0, 0), Share { names: 0, bytes: 0, of_image: 1.0 });
        assert_eq!(
            Share::of(1_000_000, 1 << 30),
            Share { names: 100_000, bytes: 107_374_182, of_image: 0.1 }
        );
        assert_eq!(Share::of(20, 4 << 30), Share { names: 10, bytes: 2 << 30, of_image: 0.5 });
    }

    #[test]
    fn as_many_are_made_as_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::make(dir.path()).unwrap();
        let cancel = Cancel::new();
        let took = create(&place, 250, &cancel).unwrap();
        assert!(took.wall_seconds > 0.0);
        write(&place, FILE + 1, &cancel).unwrap();
        sync(&place).unwrap();
        let own = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let inside = |name: &str| std::fs::read_dir(own.join(name)).unwrap().map(|entry| entry.unwrap());
        assert_eq!(inside("names").count(), 3);
        let made: usize = inside("names").map(|of| std::fs::read_dir(of.path()).unwrap().count()).sum();
        assert_eq!(made, 250);
        let mut sizes: Vec<u64> = inside("bytes").map(|file| file.metadata().unwrap().len()).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [1, FILE]);
        place.remove();
    }

    #[test]
    fn an_interruption_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::make(dir.path()).unwrap();
        let cancel = Cancel::new();
        cancel.cancel(crate::builder::cancel::Reason::Interrupt);
        assert_eq!(create(&place, 1, &cancel).unwrap_err().class, larder_model::class::Class::Cancelled);
        assert_eq!(write(&place, 1, &cancel).unwrap_err().class, larder_model::class::Class::Cancelled);
        place.remove();
    }
}
