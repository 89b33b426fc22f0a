//! The stream: headers, extended headers, data and the end, in the order of Go's archive/tar.

mod extended;
mod sparse_map;

use std::io::{BufRead, Seek};
use std::mem;

use self::extended::Extended;
use super::block::{Block, Header, Numbers, Typeflag};
use super::error::{Error, Fault, Position};
use super::pax::GnuSparse;
use super::sparse::{self, Region};
use super::{BLOCK, Chunk, Kind, Member, Record, Timestamp, number};
use crate::limits::Limits;

/// Reads a tar member by member. After an error it must not be used again.
#[derive(Debug)]
pub struct Reader<B, R> {
    input: B,
    record: R,
    limits: Limits,
    /// Number of members started so far.
    count: u64,
    logical_bytes: u64,
    position: Position,
    data: Data,
    /// Bytes that `data` returned and that are not consumed yet.
    lent: usize,
    ended: bool,
}

/// The part of the current member that has not been read.
#[derive(Debug, Default)]
struct Data {
    /// Stored bytes, without padding.
    left: u64,
    padding: u64,
    /// Logical offset of the next byte.
    offset: u64,
    /// Regions not started, in reverse order, and the bytes left of the current one. Only for sparse files.
    regions: Vec<Region>,
    region_left: u64,
    /// Logical size of the member.
    size: u64,
    route: Route,
}

/// The destination of a member's bytes in the record.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// A plain file that has not been read yet.
    #[default]
    Undecided,
    /// The caller stores the content.
    Payload,
    /// The record stores the content.
    Raw,
    RawSparse,
    /// `end_file` was called.
    Done,
}

impl<B: BufRead, R: Record> Reader<B, R> {
    /// Creates a reader at the start of a tar.
    pub fn new(input: B, record: R, limits: Limits) -> Self {
        Reader {
            input,
            record,
            limits,
            count: 0,
            logical_bytes: 0,
            position: Position::default(),
            data: Data::default(),
            lent: 0,
            ended: false,
        }
    }

    /// Returns the next member, or `None` at the end: two blocks of zeros, or the end of the stream between
    /// members. Unread content of the previous member is recorded as raw bytes.
    ///
    /// # Errors
    /// Any [`Error`]. It is an error if a plain file was read but not closed by
    /// [`end_file`](Reader::end_file).
    #[expect(clippy::should_implement_trait, reason = "the data of a member is borrowed between two calls")]
    pub fn next(&mut self) -> Result<Option<Member>, Error> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        self.position.index = self.count;
        self.position.path.clear();
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.header_block(&extended)? else {
                self.ended = true;
                return Ok(None);
            };
            let header = Header::new(&block).map_err(|fault| self.fault(fault))?;
            let flag = header.typeflag();
            if flag.is_extended() {
                self.extend(&header, &mut extended)?;
                continue;
            }
            return self.member(&header, extended).map(Some);
        }
    }

    /// Returns the next piece of the member's content from the input buffer; `None` at its end. Skips the
    /// holes of sparse files.
    ///
    /// # Errors
    /// [`Error::Input`], [`Error::Record`], or [`Fault::Truncated`] if the tar ends here.
    pub fn data(&mut self) -> Result<Option<Chunk<'_>>, Error> {
        self.consume_lent();
        let data = &mut self.data;
        if data.left == 0 {
            return Ok(None);
        }
        let mut want = data.left;
        match data.route {
            Route::Undecided => data.route = Route::Payload,
            Route::RawSparse => {
                while data.region_left == 0 {
                    // The map covers exactly the stored bytes, so a region exists while bytes are left.
                    let Some(region) = data.regions.pop() else { break };
                    data.offset = region.offset;
                    data.region_left = region.length;
                }
                want = data.region_left;
            }
            Route::Payload | Route::Raw | Route::Done => {}
        }
        let position = &self.position;
        let bytes =
            self.input.fill_buf().map_err(|source| Error::Input { position: position.clone(), source })?;
        if bytes.is_empty() {
            return Err(Error::Member {
                position: position.clone(),
                fault: Fault::Truncated("the data of a member"),
            });
        }
        let length = usize::try_from(want).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = &bytes[..length];
        if data.route == Route::Payload {
            self.record.payload(bytes);
        } else {
            self.record.raw(bytes).map_err(|source| Error::Record { position: position.clone(), source })?;
        }
        let offset = data.offset;
        data.offset += length as u64;
        data.left -= length as u64;
        data.region_left = data.region_left.saturating_sub(length as u64);
        self.lent = length;
        Ok(Some(Chunk { offset, bytes }))
    }

    /// Closes a plain file that the caller has read and stores as `name`, its path in the layer's tree.
    ///
    /// # Errors
    /// [`Error::Record`]; [`Fault::Misuse`] if the member is not a plain file or was not read completely.
    pub fn end_file(&mut self, name: &[u8]) -> Result<(), Error> {
        self.consume_lent();
        let misuse = match self.data.route {
            _ if self.data.left > 0 => Some("a file was closed before its end"),
            Route::Payload => None,
            Route::Undecided if self.data.size == 0 => None,
            _ => Some("a file was closed that is not recorded as one"),
        };
        if let Some(misuse) = misuse {
            return Err(self.fault(Fault::Misuse(misuse)));
        }
        self.data.route = Route::Done;
        let size = self.data.size;
        self.record
            .file(name, size)
            .map_err(|source| Error::Record { position: self.position.clone(), source })
    }

    /// Records this member's content as raw bytes, because the caller does not store it as a file.
    ///
    /// # Errors
    /// [`Fault::Misuse`] if content was already read as that of a file.
    pub fn data_inline(&mut self) -> Result<(), Error> {
        match self.data.route {
            Route::Undecided => self.data.route = Route::Raw,
            Route::Raw | Route::RawSparse => {}
            Route::Payload | Route::Done => {
                return Err(self.fault(Fault::Misuse("a file was made inline after it was read")));
            }
        }
        Ok(())
    }

    /// Reads all remaining members, the end, and anything after it, as raw bytes.
    ///
    /// # Errors
    /// The same errors as [`next`](Reader::next).
    pub fn finish(mut self) -> Result<(B, R), Error> {
        self.drain()?;
        Ok((self.input, self.record))
    }

    /// Does the same as [`finish`](Reader::finish), but keeps the input for
    /// [`into_input`](Reader::into_input).
    ///
    /// # Errors
    /// The same errors as [`next`](Reader::next).
    pub fn drain(&mut self) -> Result<(), Error> {
        while self.next()?.is_some() {}
        self.consume_lent();
        while self.raw_some(u64::MAX)? > 0 {}
        Ok(())
    }

    /// Returns the input at its current position.
    pub fn into_input(self) -> B {
        self.input
    }

    /// Returns the position of the input. After [`next`](Reader::next), this is the start of a plain file's
    /// content.
    ///
    /// # Errors
    /// [`Error::Input`], if the input cannot report it.
    pub fn position(&mut self) -> Result<u64, Error>
    where
        B: Seek,
    {
        let position = self.input.stream_position();
        position.map_err(|source| Error::Input { position: self.position.clone(), source })
    }

    /// Skips the content of the current member without reading or recording it. The caller must check the
    /// length of the input: beyond its end, `next` finds no further member.
    ///
    /// # Errors
    /// [`Error::Input`], if seeking fails.
    pub fn jump(&mut self) -> Result<(), Error>
    where
        B: Seek,
    {
        self.consume_lent();
        let data = mem::take(&mut self.data);
        let over = i64::try_from(data.left.saturating_add(data.padding)).unwrap_or(i64::MAX);
        let jumped = self.input.seek_relative(over);
        jumped.map_err(|source| Error::Input { position: self.position.clone(), source })
    }

    /// Returns the number of members read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the record in its current state.
    pub fn record(&self) -> &R {
        &self.record
    }

    fn fault(&self, fault: Fault) -> Error {
        Error::Member { position: self.position.clone(), fault }
    }

    fn consume_lent(&mut self) {
        self.input.consume(mem::take(&mut self.lent));
    }

    /// Records up to `max` bytes as raw bytes. Returns their number, which is 0 at the end of the stream.
    fn raw_some(&mut self, max: u64) -> Result<u64, Error> {
        let position = &self.position;
        let bytes =
            self.input.fill_buf().map_err(|source| Error::Input { position: position.clone(), source })?;
        let length = usize::try_from(max).unwrap_or(usize::MAX).min(bytes.len());
        self.record
            .raw(&bytes[..length])
            .map_err(|source| Error::Record { position: position.clone(), source })?;
        self.input.consume(length);
        Ok(length as u64)
    }

    /// Reads up to `length` bytes into `out` and the record; fewer only at the end of the stream.
    fn raw_into(&mut self, out: &mut Vec<u8>, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            let bytes = self
                .input
                .fill_buf()
                .map_err(|source| Error::Input { position: self.position.clone(), source })?;
            let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            out.extend_from_slice(&bytes[..take]);
            if self.raw_some(take as u64)? == 0 {
                break;
            }
            left -= take as u64;
        }
        Ok(())
    }

    /// Records `length` bytes as raw bytes; fewer only at the end of the stream.
    fn raw_skip(&mut self, length: u64) -> Result<(), Error> {
        let mut left = length;
        while left > 0 {
            match self.raw_some(left)? {
                0 => break,
                n => left -= n,
            }
        }
        Ok(())
    }

    /// Reads one block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<Block>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let position = &self.position;
            let bytes = self
                .input
                .fill_buf()
                .map_err(|source| Error::Input { position: position.clone(), source })?;
            let length = bytes.len().min(BLOCK - filled);
            block[filled..filled + length].copy_from_slice(&bytes[..length]);
            if self.raw_some(length as u64)? == 0 {
                break;
            }
            filled += length;
        }
        match filled {
            BLOCK => Ok(Some(block)),
            0 => Ok(None),
            _ => Err(self.fault(Fault::Truncated("a header"))),
        }
    }

    /// Reads the next header; `None` at a valid end of the tar.
    fn header_block(&mut self, extended: &Extended) -> Result<Option<Block>, Error> {
        let first = self.block()?.filter(|block| block.iter().any(|b| *b != 0));
        if first.is_some() {
            return Ok(first);
        }
        if let Some(flag) = extended.last {
            return Err(self.fault(Fault::Orphan(flag)));
        }
        match self.block()? {
            Some(second) if second.iter().any(|b| *b != 0) => Err(self.fault(Fault::LoneZeroBlock)),
            _ => Ok(None),
        }
    }

    /// Skips the rest of the current member. The stream may end inside its padding, as in Go's reader.
    fn skip_rest(&mut self) -> Result<(), Error> {
        self.consume_lent();
        if self.data.route == Route::Payload {
            return Err(self.fault(Fault::Misuse("a file was read but not closed")));
        }
        while self.data.left > 0 {
            match self.raw_some(self.data.left)? {
                0 => return Err(self.fault(Fault::Truncated("the data of a member"))),
                n => self.data.left -= n,
            }
        }
        while self.data.padding > 0 {
            match self.raw_some(self.data.padding)? {
                0 => break,
                n => self.data.padding -= n,
            }
        }
        self.data = Data::default();
        Ok(())
    }

    /// Builds a member from its header and the extended ones, and prepares its data for reading.
    fn member(&mut self, header: &Header<'_>, extended: Extended) -> Result<Member, Error> {
        let mut pax = extended.pax.unwrap_or_default();
        let path = extended.long_name.or_else(|| pax.path.take()).unwrap_or_else(|| header.path());
        self.position.path.extend_from_slice(&path);
        self.within("members", self.count + 1, self.limits.max_entries)?;
        let numbers = header.numbers().map_err(|fault| self.fault(fault))?;
        let flag = header.typeflag();
        let kind = self.kind(flag, &numbers, || {
            let target = extended.long_link.or_else(|| pax.link_target.take());
            target.unwrap_or_else(|| header.link_target())
        })?;
        let (uid, gid) = (pax.uid.unwrap_or(numbers.uid), pax.gid.unwrap_or(numbers.gid));
        let (mode, uid, gid) = number::size(numbers.mode, "mode")
            .and_then(|mode| Ok((mode & 0o7777, number::id(uid, "uid")?, number::id(gid, "gid")?)))
            .map_err(|fault| self.fault(fault))?;
        let mut member = Member {
            path,
            kind,
            // Masked to twelve bits above.
            mode: u32::try_from(mode).unwrap_or_default(),
            uid,
            gid,
            mtime: pax.mtime.unwrap_or(Timestamp { sec: numbers.mtime, nsec: 0 }),
            size: 0,
            xattrs: pax.take_xattrs(),
            index: self.count,
        };
        if member.kind == Kind::File {
            let stored =
                number::size(pax.size.unwrap_or(numbers.size), "size").map_err(|fault| self.fault(fault))?;
            self.open_file(header, &mut member, pax.sparse, stored)?;
        } else if pax.sparse.is_present() {
            return Err(self.fault(Fault::Sparse("the member is not a file")));
        }
        self.within("bytes in a path", self.position.path.len() as u64, self.limits.max_path as u64)?;
        self.record.header().map_err(|source| Error::Record { position: self.position.clone(), source })?;
        // The map of a sparse file may come with another name.
        if member.path != self.position.path {
            member.path.clone_from(&self.position.path);
        }
        self.count += 1;
        Ok(member)
    }

    fn kind(
        &self,
        flag: Typeflag,
        numbers: &Numbers,
        target: impl FnOnce() -> Vec<u8>,
    ) -> Result<Kind, Error> {
        let device = || {
            let major = number::device(numbers.major, "devmajor")?;
            Ok((major, number::device(numbers.minor, "devminor")?))
        };
        let target = || {
            let target = target();
            let (have, limit) = (target.len() as u64, self.limits.max_path as u64);
            self.within("bytes in a link target", have, limit).map(|()| target)
        };
        Ok(match flag.0 {
            // Before directories had a type of their own, a trailing slash marked them.
            _ if flag == Typeflag::OLD_FILE && self.position.path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink { target: target()? },
            b'2' => Kind::Symlink { target: target()? },
            b'3' => {
                let (major, minor) = device().map_err(|fault| self.fault(fault))?;
                Kind::CharDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device().map_err(|fault| self.fault(fault))?;
                Kind::BlockDevice { major, minor }
            }
            _ if flag == Typeflag::DIRECTORY => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(self.fault(Fault::Type(flag))),
        })
    }

    /// Prepares the data of a file, with its map if it is sparse.
    fn open_file(
        &mut self,
        header: &Header<'_>,
        member: &mut Member,
        sparse: GnuSparse,
        stored: u64,
    ) -> Result<(), Error> {
        self.data = Data { left: stored, padding: padding_of(stored), ..Data::default() };
        let map = if header.typeflag() == Typeflag::GNU_SPARSE {
            let (size, map) = self.old_gnu_map(header)?;
            member.size = size;
            Some(map)
        } else {
            self.pax_map(member, sparse, stored)?
        };
        let Some(map) = map else {
            member.size = stored;
            self.data.size = stored;
            return self.count_logical(stored);
        };
        self.data.size = member.size;
        sparse::validate(&map, member.size, self.data.left).map_err(|fault| self.fault(fault))?;
        self.data.route = Route::RawSparse;
        self.data.regions = map.iter().rev().copied().collect();
        member.kind = Kind::Sparse { map };
        self.count_logical(member.size)
    }

    fn count_logical(&mut self, size: u64) -> Result<(), Error> {
        self.logical_bytes = self.logical_bytes.saturating_add(size);
        self.within("bytes in all files", self.logical_bytes, self.limits.max_logical_bytes)
    }

    fn within(&self, quantity: &'static str, have: u64, limit: u64) -> Result<(), Error> {
        if have > limit {
            return Err(self.fault(Fault::Limit { quantity, have, limit }));
        }
        Ok(())
    }
}

/// Returns the number of bytes between the end of `size` bytes of data and the next block.
fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}
