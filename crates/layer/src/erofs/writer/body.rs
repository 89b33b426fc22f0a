//! The content of one file that is being written to the image.

use super::super::chunks::{Plan, Run};
use super::super::error::Error;
use super::super::inode::{Content, Inode, InodeId};
use super::Writer;

/// A file that is being written. It gets its name when it [ends](Body::end).
#[derive(Debug)]
pub struct Body<'w, 'a> {
    writer: &'w mut Writer<'a>,
    parent: InodeId,
    name: Box<[u8]>,
    inode: Inode,
    first: u32,
    /// Number of bytes of the file so far, including holes.
    at: u64,
    /// Announced size, for a file with holes.
    size: Option<u64>,
    chunks: Option<Chunks>,
}

#[derive(Debug)]
struct Chunks {
    plan: Plan,
    /// Index of the run that `at` is in or before.
    present: usize,
}

impl<'w, 'a> Body<'w, 'a> {
    pub(super) fn new(writer: &'w mut Writer<'a>, parent: InodeId, name: Box<[u8]>, inode: Inode) -> Self {
        let first = writer.blocks.begin();
        Body { writer, parent, name, inode, first, at: 0, size: None, chunks: None }
    }

    pub(super) fn with_holes(mut self, size: u64, plan: Option<Plan>) -> Self {
        self.size = Some(size);
        self.chunks = plan.map(|plan| Chunks { plan, present: 0 });
        self
    }

    /// Appends content to the file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`]; [`Error::Content`] if it lies in a hole or extends beyond the
    /// announced size.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write_at(self.at, bytes)
    }

    /// Writes content at `offset`, which must not be before the end of previous content.
    ///
    /// # Errors
    /// The same errors as [`write`](Body::write).
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(Error::TooLarge)?;
        if offset < self.at || self.size.is_some_and(|size| end > size) {
            return Err(Error::Content);
        }
        self.fill(offset)?;
        if let Some(Chunks { plan, present }) = &mut self.chunks
            && !bytes.is_empty()
        {
            let size = self.size.unwrap_or(u64::MAX);
            while plan.runs.get(*present).is_some_and(|run| plan.span(*run, size).1 <= offset) {
                *present += 1;
            }
            let span = plan.runs.get(*present).map(|run| plan.span(*run, size));
            if span.is_none_or(|(first, last)| offset < first || end > last) {
                return Err(Error::Content);
            }
        }
        self.writer.blocks.push(bytes)?;
        self.at = end;
        Ok(())
    }

    /// Advances to `to`: writes zeros in stored chunks, and nothing in holes.
    fn fill(&mut self, to: u64) -> Result<(), Error> {
        let Some(Chunks { plan, present }) = &mut self.chunks else {
            self.writer.blocks.zeros(to - self.at)?;
            self.at = to;
            return Ok(());
        };
        let size = self.size.unwrap_or(u64::MAX);
        while self.at < to {
            let Some(run) = plan.runs.get(*present) else {
                self.at = to;
                break;
            };
            let (first, last) = plan.span(*run, size);
            if self.at < first {
                self.at = first.min(to);
            } else if self.at < last {
                let end = last.min(to);
                self.writer.blocks.zeros(end - self.at)?;
                self.at = end;
            } else {
                *present += 1;
            }
        }
        Ok(())
    }

    /// Completes the file and adds it to the tree.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`], [`Error::Memory`].
    pub fn end(mut self) -> Result<InodeId, Error> {
        if let Some(size) = self.size {
            self.fill(size)?;
        }
        self.inode.size = self.at;
        self.inode.content = match self.chunks.take() {
            Some(Chunks { plan, .. }) => self.chunked(&plan)?,
            None => self.writer.store_tail(self.first)?,
        };
        let Body { writer, parent, name, inode, .. } = self;
        writer.add(parent, name, inode)
    }

    fn chunked(&mut self, plan: &Plan) -> Result<Content, Error> {
        self.writer.blocks.close()?;
        let mut runs_at = None;
        for run in &plan.runs {
            let at = self.writer.spill.append(&Run::to_bytes(*run))?;
            runs_at.get_or_insert(at);
        }
        Ok(Content::Chunks {
            first: self.first,
            runs: u32::try_from(plan.runs.len()).map_err(|_| Error::Map)?,
            runs_at: runs_at.unwrap_or(self.writer.spill.len()),
            bits: plan.bits,
        })
    }
}
