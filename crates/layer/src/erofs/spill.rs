//! Bytes that wait for the end: an unnamed file beside the image, written once and read once, mostly in the same order.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt as _;

use super::super::reserved::{BLOCK, Reserved};
use super::super::space::Space;
use super::error::{Context, Error};
use larder_sys::space::punch_hole;
use larder_sys::{Dir, unnamed};

/// Bytes handed to or taken from the kernel at once.
const BUFFER: usize = 256 << 10;

/// Bytes that have been read are given back in steps of this size.
const STEP: u64 = 8 << 20;

/// A file of bytes that wait.
#[derive(Debug)]
pub(super) struct Spill<'a> {
    out: BufWriter<Lent<'a>>,
    reader: File,
    len: u64,
    /// What was read last.
    window: Vec<u8>,
    window_at: u64,
    /// Whether the file system can take blocks back.
    can_release: bool,
}

/// A file whose room is given back when it is dropped.
#[derive(Debug)]
struct Lent<'a> {
    file: Reserved<'a>,
    space: &'a dyn Space,
    /// Everything before this was given back.
    released: u64,
}

impl<'a> Spill<'a> {
    pub(super) fn new(dir: &Dir, name: &[u8], space: &'a dyn Space) -> Result<Self, Error> {
        let (file, reader) = create(dir, name).context("creating a file beside the image")?;
        let file = Reserved::new(file, space).context("examining the file system of the image")?;
        let out = BufWriter::with_capacity(BUFFER, Lent { file, space, released: 0 });
        Ok(Spill { out, reader, len: 0, window: Vec::new(), window_at: 0, can_release: true })
    }

    /// Bytes in it.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends bytes, and answers where they lie.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let at = self.len;
        self.out.write_all(bytes).context("writing a file beside the image")?;
        self.len += bytes.len() as u64;
        Ok(at)
    }

    /// Appends the `len` bytes at `at` to `to`.
    pub(super) fn read(&mut self, at: u64, len: usize, to: &mut Vec<u8>) -> Result<(), Error> {
        let end = at.checked_add(len as u64);
        if at < self.out.get_ref().released || end.is_none_or(|end| end > self.len) {
            return Err(Error::Fault("bytes are read that do not wait any more"));
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

    /// The file, with everything in it that was appended.
    pub(super) fn file(&mut self) -> Result<&File, Error> {
        self.out.flush().context("writing a file beside the image")?;
        Ok(&self.reader)
    }

    fn pull(&mut self, at: u64, to: &mut [u8]) -> Result<(), Error> {
        const DOING: &str = "reading a file beside the image";
        self.out.flush().context(DOING)?;
        self.reader.read_exact_at(to, at).context(DOING)
    }

    /// Gives back the room of what lies before `at`, which is never read again.
    pub(super) fn release(&mut self, at: u64) -> Result<(), Error> {
        let end = at / STEP * STEP;
        let lent = self.out.get_mut();
        if self.can_release && end > lent.released {
            let len = end - lent.released;
            self.can_release = punch_hole(lent.file.file(), lent.released, len)
                .context("shrinking a file beside the image")?;
            if self.can_release {
                lent.space.release(len);
                lent.released = end;
            }
        }
        Ok(())
    }
}

/// A file without a name, to write to and to read from.
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

impl Write for Lent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let occupied = self.file.written().div_ceil(BLOCK) * BLOCK;
        self.space.release(occupied.saturating_sub(self.released));
    }
}
