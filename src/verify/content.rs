//! Comparison of file contents. Holes are skipped, because they always read as zeros (lseek(2), `SEEK_DATA`).

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::fs::FileExt as _;

use larder_layer::stored::StoredFile;
use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_sys::space::next_data;

/// Number of bytes read at once.
const CHUNK: usize = 1 << 17;

static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// Returns the sha256 of the bytes in `regions` (offset, length), which must be sorted. `None` if a byte
/// outside them is not zero or if the size differs.
pub(super) fn hash_regions(file: &File, size: u64, regions: &[(u64, u64)]) -> io::Result<Option<Digest>> {
    if file.metadata()?.len() != size {
        return Ok(None);
    }
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut at = 0;
    for (offset, length) in regions.iter().copied().chain([(size, 0)]) {
        if !is_zero(file, at, offset)? {
            return Ok(None);
        }
        at = offset + length;
        let hashed = each(file, offset, at, |bytes| {
            hasher.update(bytes);
            true
        });
        if !hashed? {
            return Ok(None);
        }
    }
    Ok(Some(hasher.finish()))
}

/// Reports whether the bytes from `at` to `end` are all zero.
fn is_zero(file: &File, mut at: u64, end: u64) -> io::Result<bool> {
    while at < end
        && let Some(data) = next_data(file, at)?
    {
        let stop = data.end.min(end);
        if !each(file, data.start, stop, |bytes| *bytes == ZEROS[..bytes.len()])? {
            return Ok(false);
        }
        at = data.end;
    }
    Ok(true)
}

/// Passes the bytes from `at` to `end` to `take` in pieces. Returns `false` if the file ends early or `take`
/// returns `false`.
fn each(file: &File, mut at: u64, end: u64, mut take: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let piece = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        let read = file.read_at(&mut buffer[..piece], at)?;
        if read == 0 || !take(&buffer[..read]) {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

/// Reports whether two files of the same size have the same bytes.
pub(super) fn same(one: File, two: StoredFile) -> io::Result<bool> {
    match two {
        StoredFile::File(two) => same_data(&one, &two),
        StoredFile::Image(two) => same_bytes(one, two),
    }
}

fn same_data(one: &File, two: &File) -> io::Result<bool> {
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let starts = [next_data(one, at)?, next_data(two, at)?].into_iter().flatten().map(|data| data.start);
        let Some(start) = starts.min() else { return Ok(true) };
        let read = one.read_at(&mut left, start)?;
        if read == 0 || two.read_at(&mut right[..read], start)? != read || left[..read] != right[..read] {
            return Ok(false);
        }
        at = start + read as u64;
    }
}

fn same_bytes(one: impl Read, two: impl Read) -> io::Result<bool> {
    let mut one = BufReader::with_capacity(CHUNK, one);
    let mut two = BufReader::with_capacity(CHUNK, two);
    loop {
        let (left, right) = (one.fill_buf()?, two.fill_buf()?);
        let len = left.len().min(right.len());
        if len == 0 {
            return Ok(left.len() == right.len());
        }
        if left[..len] != right[..len] {
            return Ok(false);
        }
        one.consume(len);
        two.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn file(parts: &[(u64, &[u8])], size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (offset, bytes) in parts {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn regions_and_the_zeros_between() {
        let hash = |bytes: &[u8], regions: &[(u64, u64)]| {
            hash_regions(&file(&[(0, bytes)], bytes.len() as u64), 6, regions).unwrap()
        };
        let want = Hasher::digest_of(Algorithm::Sha256, b"abc");
        assert_eq!(hash(b"ab\0\0c\0", &[(0, 2), (4, 1)]), Some(want.clone()));
        assert_eq!(hash(b"abx\0c\0", &[(0, 2), (4, 1)]), None);
        assert_eq!(hash(b"ab\0\0cx", &[(0, 2), (4, 1)]), None);
        assert_eq!(hash(b"ab\0\0c", &[(0, 2), (4, 1)]), None);
        assert_ne!(hash(b"ab\0\0d\0", &[(0, 2), (4, 1)]), Some(want));
    }

    #[test]
    fn holes_are_fast_and_hide_nothing() {
        const SIZE: u64 = 1 << 42;
        let started = Instant::now();
        let sparse = |more: &[(u64, &[u8])]| {
            let ends: [(u64, &[u8]); 2] = [(0, b"a"), (SIZE - 1, b"b")];
            file(&[&ends[..], more].concat(), SIZE)
        };
        let regions = [(0, 1), (SIZE - 1, 1)];
        let want = Some(Hasher::digest_of(Algorithm::Sha256, b"ab"));
        let (plain, spoilt) = (sparse(&[]), sparse(&[(SIZE / 2, b"x")]));
        assert_eq!(hash_regions(&plain, SIZE, &regions).unwrap(), want);
        assert_eq!(hash_regions(&spoilt, SIZE, &regions).unwrap(), None);
        // Stored zeros count as zeros.
        let stored = sparse(&[(SIZE / 2, &[0; 9000])]);
        assert_eq!(hash_regions(&stored, SIZE, &regions).unwrap(), want);
        assert!(same_data(&plain, &stored).unwrap() && !same_data(&plain, &spoilt).unwrap());
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
