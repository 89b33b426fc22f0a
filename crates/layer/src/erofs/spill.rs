//! Buffers bytes until the image is finished: an unnamed file, written once and read once, mostly in the same
//! order.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;

use super::super::reserved::{BLOCK, Reserved};
use super::super::space::Space;
use super::error::{Context, Error};
use larder_sys::space::punch_hole;
use larder_sys::{Dir, unnamed};

/// Size of one read or write, bytes.
const BUFFER: usize = 256 << 10;

/// Step in which space of bytes that have been read is released, bytes.
const STEP: u64 = 8 << 20;

/// A file of buffered bytes.
#[derive(Debug)]
pub(super) struct Spill<'a> {
    out: BufWriter<AccountedFile<'a>>,
    reader: File,
    len: u64,
    /// The bytes of the most recent read.
    window: Vec<u8>,
    window_at: u64,
    /// `true` if the file system can punch holes.
    can_release: bool,
}

/// A file whose space is released when it is dropped.
#[derive(Debug)]
struct AccountedFile<'a> {
    file: Reserved<'a>,
    space: &'a dyn Space,
    /// Offset up to which space has been released, bytes.
    released: u64,
}

impl<'a> Spill<'a> {
    pub(super) fn new(dir: &Dir, name: &[u8], space: &'a dyn Space) -> Result<Self, Error> {
        let (file, reader) = create(dir, name).context("creating the spill file")?;
        let file = Reserved::new(file, space).context("examining the file system of the image")?;
        let out = BufWriter::with_capacity(BUFFER, AccountedFile { file, space, released: 0 });
        Ok(Spill { out, reader, len: 0, window: Vec::new(), window_at: 0, can_release: true })
    }

    /// Returns the number of bytes appended.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends bytes and returns their offset.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let at = self.len;
        self.out.write_all(bytes).context("writing the spill file")?;
        self.len += bytes.len() as u64;
        Ok(at)
    }

    /// Appends the `len` bytes at offset `at` to `to`.
    pub(super) fn read(&mut self, at: u64, len: usize, to: &mut Vec<u8>) -> Result<(), Error> {
        let end = at.checked_add(len as u64);
        if at < self.out.get_ref().released || end.is_none_or(|end| end > self.len) {
            return Err(Error::Fault("released bytes of the spill file are read"));
        }
        let from = at.checked_sub(self.window_at).and_then(|from| usize::try_from(from).ok());
        if let Some(bytes) = from.and_then(|from| self.window.get(from..from.saturating_add(len))) {
            to.extend_from_slice(bytes);
            return Ok(());
        }
        if from.is_none() || len > BUFFER {
            let start = to.len();
            to.resize(start + len, 0);
            return self.pull(at, &mut to[start..]);
        }
        let mut window = std::mem::take(&mut self.window);
        window.resize(usize::try_from(self.len - at).map_or(BUFFER, |left| left.min(BUFFER)), 0);
        self.pull(at, &mut window)?;
        to.extend_from_slice(&window[..len]);
        (self.window, self.window_at) = (window, at);
        Ok(())
    }

    /// Returns the file after flushing everything that was appended.
    pub(super) fn file(&mut self) -> Result<&File, Error> {
        self.out.flush().context("writing the spill file")?;
        Ok(&self.reader)
    }

    fn pull(&mut self, at: u64, to: &mut [u8]) -> Result<(), Error> {
        const DOING: &str = "reading the spill file";
        self.out.flush().context(DOING)?;
        self.reader.read_exact_at(to, at).context(DOING)
    }

    /// Releases the space before `at`, which is never read again.
    pub(super) fn release(&mut self, at: u64) -> Result<(), Error> {
        let end = at / STEP * STEP;
        let accounted = self.out.get_mut();
        if self.can_release && end > accounted.released {
            let len = end - accounted.released;
            self.can_release = punch_hole(accounted.file.file(), accounted.released, len)
                .context("shrinking the spill file")?;
            if self.can_release {
                accounted.space.release(len);
                accounted.released = end;
            }
        }
        Ok(())
    }
}

/// Creates an unnamed file; returns handles for writing and reading.
fn create(dir: &Dir, name: &[u8]) -> io::Result<(File, File)> {
    if let Some(file) = unnamed::create(dir, 0o600)? {
        let reader = file.try_clone()?;
        return Ok((file, reader));
    }
    let file = dir.create_file(name, 0o600)?;
    let reader = dir.open_file(name);
    dir.unlink(name)?;
    Ok((file, reader?))
}

impl Write for AccountedFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AccountedFile<'_> {
    fn drop(&mut self) {
        let occupied = self.file.written().div_ceil(BLOCK) * BLOCK;
        self.space.release(occupied.saturating_sub(self.released));
    }
}
