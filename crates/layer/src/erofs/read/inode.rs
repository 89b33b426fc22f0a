//! Decodes inodes, and maps their content to positions in the image.

use std::io;

use super::super::chunks::{self, ITEM};
use super::super::format::{
    BLOCK, COMPACT, EXTENDED, Get, Layout, NO_BLOCK, SUPERBLOCK, XATTR_HEAD, XATTR_UNIT, device_of,
    file_type, type_bits,
};
use super::{Image, corrupt};
use crate::tar::Region;
use larder_sys::{FileType, Timestamp};

/// A decoded inode of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) number: u64,
    pub(super) file_type: FileType,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Timestamp,
    /// Offset and length of its attributes, bytes.
    pub(super) xattrs: (u64, usize),
    /// Offset of the tail or of the list of chunks, bytes.
    rest: u64,
    layout: Layout,
    location: u32,
}

impl Inode {
    /// Reads and checks the inode at offset `at`.
    pub(super) fn read(image: &Image, number: u64, at: u64) -> io::Result<Self> {
        let mut bytes = [0; EXTENDED];
        image.cache.read(at, &mut bytes[..COMPACT])?;
        let get = Get(&bytes);
        let format = get.u16(0);
        let extended = format & 1 == 1;
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunked,
            _ => return Err(corrupt("the format of an inode is unknown")),
        };
        let len = if extended { EXTENDED } else { COMPACT };
        if extended {
            image.cache.read(at + COMPACT as u64, &mut bytes[COMPACT..])?;
        }
        let get = Get(&bytes);
        let mode = get.u16(4);
        let file_type = file_type(mode);
        if type_bits(file_type) != mode & 0o170000 {
            return Err(corrupt("the type of an inode is unknown"));
        }
        let units = usize::from(get.u16(2));
        let xattr_len = match units {
            0 => 0,
            // The kernel does not define a header without attributes.
            1 => return Err(corrupt("the attributes of an inode are malformed")),
            units => XATTR_HEAD + (units - 1) * XATTR_UNIT,
        };
        let seconds = |bytes: u64| i64::from_le_bytes(bytes.to_le_bytes());
        let (size, uid, gid, links, mtime) = match extended {
            true => {
                let mtime = Timestamp { sec: seconds(get.u64(32)), nsec: get.u32(40) };
                (get.u64(8), get.u32(24), get.u32(28), get.u32(44), mtime)
            }
            false => {
                let (uid, gid, links) = (get.u16(24).into(), get.u16(26).into(), get.u16(6).into());
                (get.u32(8).into(), uid, gid, links, image.epoch)
            }
        };
        let xattrs_at = at + len as u64;
        let inode = Inode {
            number,
            file_type,
            mode: u32::from(mode) & 0o7777,
            links,
            uid,
            gid,
            size,
            mtime,
            xattrs: (xattrs_at, xattr_len),
            rest: xattrs_at + xattr_len as u64,
            layout,
            location: get.u32(16),
        };
        inode.check(image)?;
        Ok(inode)
    }

    /// Checks that all of the inode's data lies in the image. Unused fields are not checked.
    fn check(&self, image: &Image) -> io::Result<()> {
        let fault = || Err(corrupt("the size of an inode is invalid"));
        if self.mtime.nsec >= 1_000_000_000 {
            return Err(corrupt("the time of an inode is invalid"));
        }
        if !image.cache.has(self.xattrs.0, self.xattrs.1 as u64) || i64::try_from(self.size).is_err() {
            return fault();
        }
        if !matches!(self.file_type, FileType::Regular | FileType::Directory | FileType::Symlink) {
            return if self.size == 0 && self.layout == Layout::Plain { Ok(()) } else { fault() };
        }
        let tail = self.size % BLOCK as u64;
        let within = match self.layout {
            Layout::Plain => self.size == 0 || image.cache.has(self.first(), self.size),
            Layout::Inline => {
                let in_block = self.rest % BLOCK as u64 + tail <= BLOCK as u64;
                let blocks = self.size == tail || image.cache.has(self.first(), self.size - tail);
                tail > 0 && in_block && blocks && image.cache.has(self.rest, tail)
            }
            Layout::Chunked => {
                let known = self.location & !0x1f == 0;
                let list = chunks::count(self.size, self.bits()).checked_mul(ITEM);
                let listed = list.is_some_and(|list| image.cache.has(self.rest, list));
                known && listed && self.file_type == FileType::Regular
            }
        };
        // Content must not overlap the superblock.
        let over = self.layout != Layout::Chunked && self.size > tail && self.first() < SUPERBLOCK as u64;
        if within && !over { Ok(()) } else { fault() }
    }

    pub(super) fn device(&self) -> (u32, u32) {
        match self.file_type {
            FileType::CharDevice | FileType::BlockDevice => device_of(self.location),
            _ => (0, 0),
        }
    }

    fn first(&self) -> u64 {
        u64::from(self.location) * BLOCK as u64
    }

    fn bits(&self) -> u8 {
        // Five bits, as checked above.
        self.location.to_le_bytes()[0] & 0x1f
    }

    /// Reads all of `to` at `offset`, which must lie within the size.
    pub(super) fn read_at(&self, image: &Image, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut to) = (offset, to);
        while !to.is_empty() {
            let (at, len) = self.map(image, offset)?;
            let len = usize::try_from(len).map_or(to.len(), |len| len.min(to.len()));
            let (head, rest) = to.split_at_mut(len);
            match at {
                None => head.fill(0),
                // Tails are among the metadata.
                Some(at) if self.file_type == FileType::Regular && !self.is_tail(offset) => {
                    image.cache.read_content(at, head)?;
                }
                Some(at) => image.cache.read(at, head)?,
            }
            offset += len as u64;
            to = rest;
        }
        Ok(())
    }

    /// Maps the byte at `offset` to its position in the image, or `None` in a hole. Also returns for how many
    /// bytes the mapping is contiguous.
    fn map(&self, image: &Image, offset: u64) -> io::Result<(Option<u64>, u64)> {
        let left = self.size.checked_sub(offset).filter(|left| *left > 0);
        let left = left.ok_or_else(|| corrupt("a file is read beyond its end"))?;
        let tail = self.size % BLOCK as u64;
        match self.layout {
            Layout::Inline if offset >= self.size - tail => {
                Ok((Some(self.rest + offset % BLOCK as u64), left))
            }
            Layout::Inline => Ok((Some(self.first() + offset), left - tail)),
            Layout::Plain => Ok((Some(self.first() + offset), left)),
            Layout::Chunked => {
                let shift = chunks::shift(self.bits());
                let chunk = offset >> shift;
                let into = offset - (chunk << shift);
                let len = (1 << shift) - into;
                let at = self.chunk(image, chunk)?.map(|at| at + into);
                Ok((at, len.min(left)))
            }
        }
    }

    fn is_tail(&self, offset: u64) -> bool {
        self.layout == Layout::Inline && offset >= self.size - self.size % BLOCK as u64
    }

    /// Returns the position of a chunk; `None` for a hole.
    fn chunk(&self, image: &Image, chunk: u64) -> io::Result<Option<u64>> {
        let mut item = [0; size_of::<u32>()];
        image.cache.read(self.rest + chunk * ITEM, &mut item)?;
        match u32::from_le_bytes(item) {
            NO_BLOCK => Ok(None),
            0 => Err(corrupt("a chunk overlaps the superblock")),
            block => Ok(Some(u64::from(block) * BLOCK as u64)),
        }
    }

    /// Returns the regions of a regular file that contain data.
    pub(super) fn regions(&self, image: &Image) -> io::Result<Vec<Region>> {
        if self.layout != Layout::Chunked {
            let whole = Region { offset: 0, length: self.size };
            return Ok(if self.size > 0 { vec![whole] } else { Vec::new() });
        }
        let mut regions: Vec<Region> = Vec::new();
        let mut offset = 0;
        while offset < self.size {
            let (at, length) = self.map(image, offset)?;
            match regions.last_mut() {
                Some(last) if at.is_some() && last.offset + last.length == offset => last.length += length,
                _ if at.is_some() => regions.push(Region { offset, length }),
                _ => {}
            }
            offset += length;
        }
        Ok(regions)
    }
}
