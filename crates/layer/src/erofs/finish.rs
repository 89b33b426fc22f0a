//! Finishes an image: one pass decides the position of each inode, another pass writes them.

use super::blocks::Blocks;
use super::chunks::{self, ITEM, RUN, Run};
use super::error::Error;
use super::format::{
    BLOCK, COMPACT, EXTENDED, FIRST_FREE, Layout, MAX_BLOCKS, MAX_TAIL, NO_BLOCK, RawInode, SLOT, Superblock,
    XATTR_HEAD, fits_compact,
};
use super::inode::{Content, Directory, DirectoryBlocks, Inode, InodeId};
use super::listing::{self, Extent};
use super::pack::{Packed, Packer};
use super::spill::Spill;
use super::verity::{self, Verity};
use super::writer::Writer;
use super::xattrs::Xattrs;
use larder_sys::Timestamp;

/// The size and contents of a written image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Size of the file, bytes.
    pub size: u64,
    /// Data for verification block by block; `None` if it was not requested.
    pub verity: Option<Verity>,
    /// Number of inodes in the image.
    pub inodes: u64,
    /// Bytes that are not file content in whole blocks.
    pub metadata: u64,
}

/// Number of slots in a block.
const SLOTS: u32 = 128;
const _: () = assert!(SLOTS as usize * SLOT == BLOCK);

/// The root inode follows the superblock, because its number has only 16 bits.
const ROOT_AT: usize = FIRST_FREE;
const _: () = assert!(ROOT_AT.is_multiple_of(SLOT));

/// The parts of an image, as the numbers of their first blocks.
#[derive(Clone, Copy, Debug)]
struct Parts {
    inodes: u32,
    shared: u32,
    directories: u32,
}

/// The layout of one inode with everything that follows it.
struct Unit {
    compact: bool,
    head: usize,
    xattrs: usize,
    /// Length of the tail or of the list of chunks, bytes.
    rest: u64,
}

impl Unit {
    fn len(&self) -> u64 {
        (self.head + self.xattrs) as u64 + self.rest
    }
}

impl Writer<'_> {
    /// Writes everything that was deferred. The file is complete afterwards, but not synced.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`], [`Error::TooMuchMetadata`].
    pub fn finish(mut self) -> Result<Summary, Error> {
        let epoch = epoch(&self.inodes);
        let live = || self.inodes.iter().filter(|inode| inode.is_live());
        let inodes = live().count() as u64;
        let chunked = live().any(|inode| matches!(inode.content, Content::Chunks { .. }));
        for inode in live() {
            self.xattrs.count(inode.xattrs);
        }
        let directory_blocks = self.place_directories()?;
        let packed = self.place_inodes(epoch)?;
        let first = self.blocks.begin();
        let shared = u64::from(first) + u64::from(packed.blocks);
        let directories = shared + self.xattrs.shared_len().div_ceil(BLOCK as u64);
        // fsck.erofs 1.5 reads the header of attributes after an inode that has none.
        let overrun = directories + directory_blocks == shared && packed.last > BLOCK - XATTR_HEAD;
        let total = directories + directory_blocks + u64::from(overrun);
        let number = |block| u32::try_from(block).ok().filter(|block| u64::from(*block) <= MAX_BLOCKS);
        let parts = Parts {
            inodes: first,
            shared: number(shared).ok_or(Error::TooLarge)?,
            directories: number(directories).ok_or(Error::TooLarge)?,
        };
        let blocks = number(total).ok_or(Error::TooLarge)?;

        let root = self.write_inodes(parts, epoch)?;
        expect(&self.blocks, parts.shared)?;
        self.xattrs.write_shared(&mut self.blocks)?;
        expect(&self.blocks, parts.directories)?;
        self.write_directories(parts)?;
        if overrun {
            self.blocks.zeros(BLOCK as u64)?;
        }
        expect(&self.blocks, blocks)?;

        let mut block = [0; BLOCK];
        block[ROOT_AT..ROOT_AT + root.len()].copy_from_slice(&root);
        let superblock = Superblock {
            root: u16::try_from(ROOT_AT / SLOT).map_err(|_| Error::TooMuchMetadata)?,
            inodes,
            epoch,
            blocks,
            xattr_block: parts.shared,
            uuid: &self.options.uuid,
            label: self.options.label.bytes(),
            chunked,
        };
        superblock.seal(&mut block);
        let verity = self.blocks.finish(&block, self.options.verity.then_some(&self.options.uuid))?;
        let image = u64::from(blocks) * BLOCK as u64;
        let size = image + verity.map_or(0, |_| verity::len(blocks.into()));
        Ok(Summary { size, verity, inodes, metadata: image - u64::from(first - 1) * BLOCK as u64 })
    }

    /// Decides the layout of directories; returns the number of blocks outside of inodes.
    fn place_directories(&mut self) -> Result<u64, Error> {
        let mut next: u64 = 0;
        for id in 0..self.inodes.len() {
            let Some(index) = directory(&self.inodes[id]) else { continue };
            let itself = InodeId(u32::try_from(id).map_err(|_| Error::TooManyEntries)?);
            let directory = &mut self.directories[index];
            let Extent { blocks, last } = directory.extent(itself)?;
            // The root shares its block with the superblock and its attributes.
            let longest = if itself == InodeId::ROOT { MAX_TAIL - ROOT_AT } else { MAX_TAIL };
            let tail = if last <= longest { last } else { 0 };
            let outside = if tail == 0 { blocks } else { blocks - 1 };
            let number = |block: u64| u32::try_from(block).map_err(|_| Error::TooMuchMetadata);
            directory.position = DirectoryBlocks { first: number(next)?, blocks: number(outside)?, tail };
            self.inodes[id].size = (blocks - 1) * BLOCK as u64 + last as u64;
            next += outside;
        }
        Ok(next)
    }

    /// Decides the position of inodes; returns the space that they take.
    fn place_inodes(&mut self, epoch: Timestamp) -> Result<Packed, Error> {
        let mut packer: Packer<Vec<(u32, usize)>> = Packer::new();
        for id in 0..self.inodes.len() {
            let inode = self.inodes[id];
            if !inode.is_live() {
                continue;
            }
            let room = BLOCK - EXTENDED - if id == 0 { ROOT_AT } else { 0 };
            let tail = usize::try_from(rest(&inode, &self.directories)).unwrap_or(usize::MAX);
            let inline_len = if matches!(inode.content, Content::Chunks { .. }) { 0 } else { tail };
            self.xattrs.decide_sharing(inode.xattrs, room.saturating_sub(inline_len))?;
            if id == 0 {
                continue;
            }
            let len = unit(&inode, &self.directories, &self.xattrs, epoch).len();
            match usize::try_from(len) {
                Ok(len) if len <= BLOCK => {
                    let inodes = &mut self.inodes;
                    let mut close = |number, units: Vec<(u32, usize)>| assign(inodes, number, &units);
                    let (offset, units) = packer.place(len, &mut close)?;
                    units.push((u32::try_from(id).map_err(|_| Error::TooManyEntries)?, offset));
                }
                _ => {
                    let number = packer.run(len)?;
                    self.inodes[id].slot = slot(number, 0)?;
                }
            }
        }
        let inodes = &mut self.inodes;
        packer.finish(&mut |number, units| assign(inodes, number, &units))
    }

    /// Writes all inodes except the root, and returns the root.
    fn write_inodes(&mut self, parts: Parts, epoch: Timestamp) -> Result<Vec<u8>, Error> {
        let Writer { blocks, spill, xattrs, inodes, directories, .. } = self;
        let mut writer = InodeWriter { blocks, spill, xattrs, inodes, directories, parts, epoch };
        let mut root = Vec::new();
        writer.inode(InodeId::ROOT, &mut root)?;
        let mut packer: Packer<Vec<u8>> = Packer::new();
        let mut alone = Vec::new();
        for id in 1..writer.inodes.len() {
            let inode = &writer.inodes[id];
            if !inode.is_live() {
                continue;
            }
            let itself = InodeId(u32::try_from(id).map_err(|_| Error::TooManyEntries)?);
            let len = unit(inode, writer.directories, writer.xattrs, epoch).len();
            match usize::try_from(len) {
                Ok(len) if len <= BLOCK => {
                    let (offset, block) =
                        packer.place(len, &mut |_, block: Vec<u8>| write_block(writer.blocks, &block))?;
                    block.resize(offset, 0);
                    writer.inode(itself, block)?;
                }
                _ => {
                    packer.run(len)?;
                    alone.clear();
                    writer.inode(itself, &mut alone)?;
                }
            }
        }
        packer.finish(&mut |_, block| write_block(writer.blocks, &block))?;
        Ok(root)
    }

    /// Writes the directory blocks that are outside of inodes.
    fn write_directories(&mut self, parts: Parts) -> Result<(), Error> {
        let Writer { blocks, inodes, directories, .. } = self;
        let mut bytes = Vec::with_capacity(BLOCK);
        for (id, inode) in inodes.iter().enumerate() {
            let Some(index) = directory(inode) else { continue };
            let itself = InodeId(u32::try_from(id).map_err(|_| Error::TooManyEntries)?);
            let mut left = directories[index].position.blocks;
            directories[index].blocks(itself, |entries, _| {
                if left > 0 {
                    left -= 1;
                    bytes.clear();
                    listing::write(entries, |id| find(inodes, parts, id), &mut bytes)?;
                    write_block(blocks, &bytes)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Writes single inodes.
struct InodeWriter<'e, 'a> {
    blocks: &'e mut Blocks<'a>,
    spill: &'e mut Spill<'a>,
    xattrs: &'e mut Xattrs<'a>,
    inodes: &'e [Inode],
    directories: &'e [Directory],
    parts: Parts,
    epoch: Timestamp,
}

impl InodeWriter<'_, '_> {
    /// Appends an inode and the data that follows it. If that is more than a block, writes it directly.
    fn inode(&mut self, id: InodeId, to: &mut Vec<u8>) -> Result<(), Error> {
        let inode = &self.inodes[id.index()];
        let unit = unit(inode, self.directories, self.xattrs, self.epoch);
        let start = to.len();
        let (layout, location) = match inode.content {
            Content::None => (Layout::Plain, 0),
            Content::Device(number) => (Layout::Plain, number),
            Content::Blocks { first, tail: 0, .. } => (Layout::Plain, first),
            Content::Blocks { first, .. } => (Layout::Inline, first),
            Content::Chunks { bits, .. } => (Layout::Chunked, bits.into()),
            Content::Directory(index) => {
                let DirectoryBlocks { first, tail, .. } = self.directories[index as usize].position;
                let layout = if tail == 0 { Layout::Plain } else { Layout::Inline };
                // Cannot overflow, because the sum of all was checked.
                (layout, self.parts.directories.saturating_add(first))
            }
        };
        let raw = RawInode {
            layout,
            xattr_len: unit.xattrs,
            mode: inode.mode,
            links: inode.links,
            size: inode.size,
            location,
            number: id.0.saturating_add(1),
            uid: inode.uid,
            gid: inode.gid,
            mtime: (!unit.compact).then_some(inode.mtime),
        };
        let (bytes, len) = raw.encode();
        to.extend_from_slice(&bytes[..len]);
        self.xattrs.write(inode.xattrs, to)?;
        match inode.content {
            Content::Blocks { tail, tail_at, .. } if tail > 0 => {
                self.spill.read(tail_at, tail.into(), to)?;
                self.spill.release(tail_at)?;
            }
            Content::Directory(index) => {
                let directory = &self.directories[index as usize];
                let (mut left, tail) = (directory.position.blocks, directory.position.tail);
                directory.blocks(id, |entries, _| {
                    match left {
                        0 if tail > 0 => listing::write(entries, |id| find(self.inodes, self.parts, id), to)?,
                        _ => left = left.saturating_sub(1),
                    }
                    Ok(())
                })?;
            }
            Content::Chunks { .. } => self.list(inode, unit.len() > BLOCK as u64, to)?,
            _ => {}
        }
        match to.len() as u64 == start as u64 + unit.len() || unit.len() > BLOCK as u64 {
            true => Ok(()),
            false => Err(Error::Fault("an inode differs from its planned length")),
        }
    }

    /// Appends the list of a file's chunks, or writes it directly if it is `long`.
    fn list(&mut self, inode: &Inode, long: bool, to: &mut Vec<u8>) -> Result<(), Error> {
        let Content::Chunks { first, runs, runs_at, bits } = inode.content else { return Ok(()) };
        let total = chunks::count(inode.size, bits);
        let mut next_block = u64::from(first);
        let mut written = 0;
        let mut item = |block: u32, count: u64, blocks: &mut Blocks<'_>| -> Result<(), Error> {
            for n in 0..count {
                let block = match block {
                    NO_BLOCK => NO_BLOCK,
                    block => u32::try_from(u64::from(block) + (n << bits)).map_err(|_| Error::TooLarge)?,
                };
                to.extend_from_slice(&block.to_le_bytes());
                if long && to.len() >= BLOCK {
                    blocks.push(to)?;
                    to.clear();
                }
            }
            Ok(())
        };
        let mut bytes = Vec::with_capacity(RUN);
        for n in 0..u64::from(runs) {
            bytes.clear();
            self.spill.read(runs_at + n * RUN as u64, RUN, &mut bytes)?;
            let run = bytes.first_chunk().map(Run::from_bytes).ok_or(Error::Fault("a run is too short"))?;
            item(NO_BLOCK, run.first.saturating_sub(written), self.blocks)?;
            item(u32::try_from(next_block).map_err(|_| Error::TooLarge)?, run.count, self.blocks)?;
            next_block += run.count << bits;
            written = run.first + run.count;
        }
        item(NO_BLOCK, total.saturating_sub(written), self.blocks)?;
        self.spill.release(runs_at)?;
        if long {
            self.blocks.push(to)?;
            to.clear();
            self.blocks.close()?;
        }
        Ok(())
    }
}

/// Returns the most frequent time of all inodes, which is the time of all compact ones.
fn epoch(inodes: &[Inode]) -> Timestamp {
    let mut times: Vec<Timestamp> =
        inodes.iter().filter(|inode| inode.is_live()).map(|inode| inode.mtime).collect();
    times.sort_unstable();
    let runs = times.chunk_by(|a, b| a == b).map(|run| (run.len(), std::cmp::Reverse(run[0])));
    runs.max().map_or(Timestamp::default(), |(_, std::cmp::Reverse(time))| time)
}

/// Returns the index of a directory that is to be written.
fn directory(inode: &Inode) -> Option<usize> {
    match inode.content {
        Content::Directory(index) if inode.is_live() => Some(index as usize),
        _ => None,
    }
}

/// Returns the number of bytes that follow an inode and its attributes.
fn rest(inode: &Inode, directories: &[Directory]) -> u64 {
    match inode.content {
        Content::Blocks { tail, .. } => tail.into(),
        Content::Chunks { bits, .. } => chunks::count(inode.size, bits) * ITEM,
        Content::Directory(index) => directories[index as usize].position.tail as u64,
        Content::None | Content::Device(_) => 0,
    }
}

fn unit(inode: &Inode, directories: &[Directory], xattrs: &Xattrs<'_>, epoch: Timestamp) -> Unit {
    let compact = inode.mtime == epoch && fits_compact(inode.size, inode.links, inode.uid, inode.gid);
    Unit {
        compact,
        head: if compact { COMPACT } else { EXTENDED },
        xattrs: xattrs.len(inode.xattrs),
        rest: rest(inode, directories),
    }
}

fn slot(block: u32, offset: usize) -> Result<u32, Error> {
    let slot = block.checked_mul(SLOTS).zip(u32::try_from(offset / SLOT).ok());
    slot.and_then(|(first, slot)| first.checked_add(slot)).ok_or(Error::TooMuchMetadata)
}

fn assign(inodes: &mut [Inode], block: u32, units: &[(u32, usize)]) -> Result<(), Error> {
    for (id, offset) in units {
        inodes[*id as usize].slot = slot(block, *offset)?;
    }
    Ok(())
}

/// Returns node number and type of an inode.
fn find(inodes: &[Inode], parts: Parts, id: InodeId) -> (u64, larder_sys::FileType) {
    let inode = &inodes[id.index()];
    let number = match id {
        InodeId::ROOT => (ROOT_AT / SLOT) as u64,
        _ => u64::from(parts.inodes) * u64::from(SLOTS) + u64::from(inode.slot),
    };
    (number, inode.file_type())
}

fn write_block(blocks: &mut Blocks<'_>, bytes: &[u8]) -> Result<(), Error> {
    blocks.push(bytes)?;
    blocks.close()
}

/// Checks that everything before `block` was written.
fn expect(blocks: &Blocks<'_>, block: u32) -> Result<(), Error> {
    match blocks.next() == block && blocks.tail().is_empty() {
        true => Ok(()),
        false => Err(Error::Fault("a part of the image differs from its planned length")),
    }
}
