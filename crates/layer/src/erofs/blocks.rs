//! The image as a sequence of blocks, written from start to end.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

use super::super::reserved::Reserved;
use super::super::space::Space;
use super::error::{Context, Error};
use super::format::{BLOCK, MAX_BLOCKS};
use super::verity::{self, Verity};

/// Size of one write to the kernel, bytes.
const BUFFER: usize = 256 << 10;

const DOING: &str = "writing the image";

/// The blocks of an image.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    output: Output<'a>,
    /// The current partial block, which is not written yet.
    partial: Vec<u8>,
    /// Number of the next block.
    next: u32,
}

/// The destination of blocks.
#[derive(Debug)]
enum Output<'a> {
    /// Blocks are written to a file.
    New(BufWriter<Reserved<'a>>),
    /// Blocks are compared with those of an existing image.
    Present(File),
}

impl<'a> Blocks<'a> {
    /// Wraps an empty file. The first block is written last.
    pub(super) fn new(file: File, space: &'a dyn Space) -> Result<Self, Error> {
        let out = Reserved::new(file, space).context("examining the file system of the image")?;
        let out = BufWriter::with_capacity(BUFFER, out);
        let mut blocks = Blocks { output: Output::New(out), partial: Vec::with_capacity(BLOCK), next: 0 };
        blocks.whole(&[0; BLOCK])?;
        Ok(blocks)
    }

    /// Compares with an existing file instead of writing one.
    pub(super) fn compare(file: File) -> Self {
        // The first block is compared last.
        Blocks { output: Output::Present(file), partial: Vec::with_capacity(BLOCK), next: 1 }
    }

    /// Returns the number of the next block.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Starts a new object, and discards the partial block of an unfinished one.
    pub(super) fn begin(&mut self) -> u32 {
        self.partial.clear();
        self.next
    }

    /// Appends bytes to the image.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        if !self.partial.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK - self.partial.len()));
            self.partial.extend_from_slice(head);
            bytes = rest;
            if self.partial.len() < BLOCK {
                return Ok(());
            }
            self.flush_partial()?;
        }
        let (blocks, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
        if !blocks.is_empty() {
            self.whole(blocks)?;
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    /// Appends `count` zero bytes to the image.
    pub(super) fn zeros(&mut self, mut count: u64) -> Result<(), Error> {
        const ZEROS: &[u8] = &[0; 16 * BLOCK];
        while count > 0 {
            let len = usize::try_from(count).map_or(ZEROS.len(), |count| count.min(ZEROS.len()));
            self.push(&ZEROS[..len])?;
            count -= len as u64;
        }
        Ok(())
    }

    /// Returns the bytes of the partial block.
    pub(super) fn tail(&self) -> &[u8] {
        &self.partial
    }

    /// Discards the partial block.
    pub(super) fn drop_tail(&mut self) {
        self.partial.clear();
    }

    /// Pads the partial block with zeros.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        if self.partial.is_empty() { Ok(()) } else { self.flush_partial() }
    }

    fn flush_partial(&mut self) -> Result<(), Error> {
        let mut partial = std::mem::take(&mut self.partial);
        partial.resize(BLOCK, 0);
        let written = self.whole(&partial);
        partial.clear();
        self.partial = partial;
        written
    }

    fn whole(&mut self, blocks: &[u8]) -> Result<(), Error> {
        let next = u64::from(self.next) + (blocks.len() / BLOCK) as u64;
        if next > MAX_BLOCKS {
            return Err(Error::TooLarge);
        }
        let at = u64::from(self.next) * BLOCK as u64;
        self.next = u32::try_from(next).map_err(|_| Error::TooLarge)?;
        match &mut self.output {
            Output::New(out) => out.write_all(blocks).context(DOING),
            Output::Present(file) => compare(file, at, blocks),
        }
    }

    /// Returns the file after flushing all whole blocks.
    pub(super) fn file(&mut self) -> Result<&File, Error> {
        match &mut self.output {
            Output::New(out) => {
                out.flush().context(DOING)?;
                Ok(out.get_ref().file())
            }
            Output::Present(file) => Ok(file),
        }
    }

    /// Writes the first block, and a hash tree after the last one if `verity` contains its UUID. Nothing may
    /// follow.
    pub(super) fn finish(
        mut self,
        first: &[u8; BLOCK],
        verity: Option<&[u8; 16]>,
    ) -> Result<Option<Verity>, Error> {
        let blocks = u64::from(self.next);
        let image = self.file()?.try_clone().context("opening the image")?;
        let proven = |put: &mut verity::Put<'_>| {
            verity.map(|uuid| verity::write(&image, blocks, uuid, put)).transpose()
        };
        let behind = verity.map_or(0, |_| verity::len(blocks));
        match &mut self.output {
            Output::New(out) => {
                out.get_mut().claim(behind).context(DOING)?;
                image.write_all_at(first, 0).context(DOING)?;
                proven(&mut |at, bytes| image.write_all_at(bytes, at).context(DOING))
            }
            Output::Present(file) => {
                compare(file, 0, first)?;
                let proof = proven(&mut |at, bytes| compare(&image, at, bytes))?;
                let len = blocks * BLOCK as u64 + behind;
                match file.metadata().context("examining the image")?.len() {
                    found if found == len => Ok(proof),
                    found => Err(Error::Differs { at: found.min(len) }),
                }
            }
        }
    }
}

/// Compares bytes with those of a file at offset `at`.
fn compare(file: &File, at: u64, bytes: &[u8]) -> Result<(), Error> {
    let mut buffer = [0; 4 * BLOCK];
    for (number, piece) in bytes.chunks(buffer.len()).enumerate() {
        let at = at + (number * buffer.len()) as u64;
        let found = &mut buffer[..piece.len()];
        match file.read_exact_at(found, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Error::Differs { at }),
            other => other.context("reading the image")?,
        }
        if let Some(differs) = found.iter().zip(piece).position(|(a, b)| a != b) {
            return Err(Error::Differs { at: at + differs as u64 });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::space::NoAccounting;
    use super::*;

    #[test]
    fn an_image_has_an_end() {
        let mut blocks = Blocks::new(tempfile::tempfile().unwrap(), &NoAccounting).unwrap();
        blocks.next = u32::MAX - 2;
        blocks.push(&[1; BLOCK]).unwrap();
        blocks.push(&[1; BLOCK]).unwrap();
        assert!(matches!(blocks.push(&[1; BLOCK]), Err(Error::TooLarge)));
        blocks.begin();
        blocks.push(&[1]).unwrap();
        assert!(matches!(blocks.close(), Err(Error::TooLarge)));
    }

    #[test]
    fn pieces_make_blocks() {
        let mut blocks = Blocks::new(tempfile::tempfile().unwrap(), &NoAccounting).unwrap();
        blocks.push(&[1; 5000]).unwrap();
        assert_eq!((blocks.next(), blocks.tail().len()), (2, 904));
        blocks.push(&[2; 3192]).unwrap();
        assert_eq!((blocks.next(), blocks.tail().len()), (3, 0));
        blocks.zeros(1 << 20).unwrap();
        assert_eq!((blocks.next(), blocks.tail().len()), (259, 0));
        blocks.push(&[3]).unwrap();
        assert_eq!(blocks.begin(), 259);
        blocks.close().unwrap();
        assert_eq!(blocks.next(), 259);
    }
}
