//! The content of one file on its way into the image.

use super::chunks::{Plan, Run};
use super::error::Error;
use super::format::{BLOCK, COMPACT, EXTENDED, MAX_SHARED, XATTR_HEAD, XATTR_UNIT};
use super::inode::{Content, Inode, InodeId};
use super::writer::Writer;

/// Longest tail that is laid behind its inode, bytes. Beside it there is room for every attribute that an inode can refer
/// to, so whatever attributes a file is given later, its tail stays where it is. A longer one would fill most of a block
/// anyway.
pub(super) const MAX_TAIL: usize = BLOCK - EXTENDED - XATTR_HEAD - MAX_SHARED * XATTR_UNIT;
const _: () = assert!(MAX_TAIL + COMPACT < BLOCK);

/// A file that is being written; it gets its name when it [ends](Body::end).
#[derive(Debug)]
pub struct Body<'w, 'a> {
    writer: &'w mut Writer<'a>,
    parent: InodeId,
    name: Box<[u8]>,
    inode: Inode,
    first: u32,
    /// Bytes of the file so far, holes included.
    at: u64,
    /// Size of a file with holes.
    size: Option<u64>,
    chunks: Option<Chunks>,
}

#[derive(Debug)]
struct Chunks {
    plan: Plan,
    /// The run that `at` is in or before.
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

    /// Appends content.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`]; [`Error::Content`] where it lies in a hole or passes the announced size.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.write_at(self.at, bytes)
    }

    /// Writes content at `offset`, behind everything written so far.
    ///
    /// # Errors
    /// As [`write`](Body::write).
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

    /// Goes on to `to`: zeros where something is stored, nothing where a hole is.
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

    /// The file is complete.
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
            None => self.writer.settle_tail(self.first)?,
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
