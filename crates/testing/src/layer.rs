//! Layers built in code: well-formed members of every kind, and raw blocks for malformed ones.

use std::io::{self, Write};

use larder_model::digest::Digest;

/// Size of a tar block, in bytes (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK: usize = 512;

/// A range of data in a sparse file, in bytes.
struct Region {
    offset: u64,
    length: u64,
}

/// A finished layer of [`LayerBuilder`].
#[derive(Clone, Debug)]
pub struct BuiltLayer {
    /// Blob as a registry serves it.
    pub blob: Vec<u8>,
    /// sha256 digest of the blob.
    pub digest: Digest,
    /// sha256 digest of the tar.
    pub diff_id: Digest,
    /// OCI media type of the blob.
    pub media_type: String,
}

/// Tar format of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseForm {
    /// GNU type `S`, with extension blocks from the fifth region on.
    OldGnu,
    /// PAX 0.0: two records for each region.
    Pax00,
    /// PAX 0.1: the map in one record.
    Pax01,
    /// PAX 1.0: the map in front of the data.
    Pax10,
}

impl SparseForm {
    /// All four sparse formats.
    pub const ALL: [SparseForm; 4] =
        [SparseForm::OldGnu, SparseForm::Pax00, SparseForm::Pax01, SparseForm::Pax10];
}

/// Builds a tar member by member. Members get mode 0644 or 0755, owner 0:0 and mtime 1, unless set otherwise.
#[derive(Clone, Debug)]
pub struct LayerBuilder {
    tar: Vec<u8>,
    owner: (u64, u64),
    mode: Option<u32>,
    mtime: u64,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        LayerBuilder::new()
    }
}

impl LayerBuilder {
    /// Creates an empty tar.
    pub fn new() -> Self {
        LayerBuilder { tar: Vec::new(), owner: (0, 0), mode: None, mtime: 1, records: Vec::new() }
    }

    /// Sets owner and group of the members that follow.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// Sets the mode of the next member.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Sets the modification time of the members that follow, in seconds.
    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    /// Adds a pax record to the next member.
    pub fn pax(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// Adds an extended attribute to the next member.
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(format!("SCHILY.xattr.{name}"), value)
    }

    /// Appends a regular file.
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.member(path.as_ref(), b'0', 0o644, b"", content.as_ref(), |_| {})
    }

    /// Appends a directory member.
    pub fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.member(path.as_ref(), b'5', 0o755, b"", b"", |_| {})
    }

    /// Appends a symbolic link.
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.member(path.as_ref(), b'2', 0o777, target.as_ref(), b"", |_| {})
    }

    /// Appends a hard link.
    pub fn hardlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.member(path.as_ref(), b'1', 0o644, target.as_ref(), b"", |_| {})
    }

    /// Appends a character device.
    pub fn char_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.device(path.as_ref(), b'3', major, minor)
    }

    /// Appends a block device.
    pub fn block_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.device(path.as_ref(), b'4', major, minor)
    }

    /// Appends a named pipe.
    pub fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.member(path.as_ref(), b'6', 0o644, b"", b"", |_| {})
    }

    /// Appends the whiteout of `path`: an empty file `.wh.<name>` in the same directory.
    pub fn whiteout(self, path: &str) -> Self {
        let path = match path.rsplit_once('/') {
            Some((parent, name)) => format!("{parent}/.wh.{name}"),
            None => format!(".wh.{path}"),
        };
        self.file(path, b"")
    }

    /// Marks the directory `path` as opaque. An empty path means the root.
    pub fn opaque(self, path: &str) -> Self {
        let separator = if path.is_empty() { "" } else { "/" };
        self.file(format!("{path}{separator}.wh..wh..opq"), b"")
    }

    /// Appends a sparse file of `size` bytes. `content` lists its data by offset.
    pub fn sparse(
        mut self,
        form: SparseForm,
        path: impl AsRef<[u8]>,
        size: u64,
        content: &[(u64, &[u8])],
    ) -> Self {
        let map: Vec<Region> = content
            .iter()
            .map(|(offset, bytes)| Region { offset: *offset, length: bytes.len() as u64 })
            .collect();
        let data: Vec<u8> = content.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let path = path.as_ref();
        let numbers = map.iter().flat_map(|region| [region.offset, region.length]);
        let joined =
            |separator: &str| numbers.clone().map(|n| n.to_string()).collect::<Vec<_>>().join(separator);
        match form {
            SparseForm::OldGnu => self.old_gnu_sparse(path, size, &map, &data),
            SparseForm::Pax00 => {
                self = self.pax("GNU.sparse.size", size.to_string());
                self = self.pax("GNU.sparse.numblocks", map.len().to_string());
                for region in &map {
                    self = self.pax("GNU.sparse.offset", region.offset.to_string());
                    self = self.pax("GNU.sparse.numbytes", region.length.to_string());
                }
                self.file(path, data)
            }
            SparseForm::Pax01 => self
                .pax("GNU.sparse.size", size.to_string())
                .pax("GNU.sparse.numblocks", map.len().to_string())
                .pax("GNU.sparse.name", path)
                .pax("GNU.sparse.map", joined(","))
                .file("GNUSparseFile.0/x", data),
            SparseForm::Pax10 => {
                let mut stored = format!("{}\n{}\n", map.len(), joined("\n")).into_bytes();
                pad(&mut stored);
                stored.extend_from_slice(&data);
                self.pax("GNU.sparse.major", "1")
                    .pax("GNU.sparse.minor", "0")
                    .pax("GNU.sparse.name", path)
                    .pax("GNU.sparse.realsize", size.to_string())
                    .file("GNUSparseFile.0/x", stored)
            }
        }
    }

    /// Appends a GNU long name (`L`) or long link target (`K`) for the next member.
    pub fn gnu_long(self, typeflag: u8, text: impl AsRef<[u8]>) -> Self {
        let mut text = text.as_ref().to_vec();
        text.push(0);
        let mut header = self.header(b"././@LongLink", typeflag, 0o644, b"", text.len() as u64);
        write_field(&mut header, 257, b"ustar  \0");
        self.header_and_data(header, &text)
    }

    /// Appends the given header with a corrected checksum, and `data`, padded.
    pub fn raw_header(self, header: [u8; BLOCK], data: &[u8]) -> Self {
        self.header_and_data(header, data)
    }

    /// Appends a member like [`file`](LayerBuilder::file) of any type. `change` modifies its header before
    /// the checksum is computed.
    pub fn odd(
        self,
        path: impl AsRef<[u8]>,
        typeflag: u8,
        data: &[u8],
        change: impl FnOnce(&mut [u8; BLOCK]),
    ) -> Self {
        self.member(path.as_ref(), typeflag, 0o644, b"", data, change)
    }

    /// Appends bytes without any change.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.tar.extend_from_slice(bytes.as_ref());
        self
    }

    /// Returns the tar with its two final blocks of zeros.
    pub fn tar(mut self) -> Vec<u8> {
        self.tar.extend_from_slice(&[0; 2 * BLOCK]);
        self.tar
    }

    /// Returns the tar without the final blocks.
    pub fn unfinished(self) -> Vec<u8> {
        self.tar
    }

    /// Returns an uncompressed layer.
    pub fn plain(self) -> BuiltLayer {
        let tar = self.tar();
        built(tar.clone(), &tar, "")
    }

    /// Returns a layer in one gzip member.
    pub fn gzip(self) -> BuiltLayer {
        self.gzip_members(1)
    }

    /// Returns a layer in `count` gzip members of about the same size.
    pub fn gzip_members(self, count: usize) -> BuiltLayer {
        let tar = self.tar();
        let blob = tar.chunks(tar.len().div_ceil(count.max(1))).flat_map(gzip).collect();
        built(blob, &tar, "+gzip")
    }

    /// Returns a layer in one zstd frame with a checksum.
    pub fn zstd(self) -> BuiltLayer {
        let tar = self.tar();
        let blob = zstd_frame(&tar);
        built(blob, &tar, "+zstd")
    }

    fn device(self, path: &[u8], typeflag: u8, major: u32, minor: u32) -> Self {
        self.member(path, typeflag, 0o644, b"", b"", |header| {
            write_number(&mut header[329..337], u64::from(major));
            write_number(&mut header[337..345], u64::from(minor));
        })
    }

    fn member(
        mut self,
        path: &[u8],
        typeflag: u8,
        mode: u32,
        target: &[u8],
        data: &[u8],
        change: impl FnOnce(&mut [u8; BLOCK]),
    ) -> Self {
        if path.len() > 100 {
            self = self.pax("path", path);
        }
        if target.len() > 100 {
            self = self.pax("linkpath", target);
        }
        self = self.flush_records();
        let mode = self.mode.take().unwrap_or(mode);
        let mut header = self.header(path, typeflag, mode, target, data.len() as u64);
        change(&mut header);
        self.header_and_data(header, data)
    }

    fn flush_records(mut self) -> Self {
        if self.records.is_empty() {
            return self;
        }
        let body: Vec<u8> = std::mem::take(&mut self.records)
            .iter()
            .flat_map(|(key, value)| pax_record(key, value))
            .collect();
        let header = self.header(b"PaxHeaders/x", b'x', 0o644, b"", body.len() as u64);
        self.header_and_data(header, &body)
    }

    fn header(&self, path: &[u8], typeflag: u8, mode: u32, target: &[u8], size: u64) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        write_field(&mut header, 0, &path[..path.len().min(100)]);
        write_number(&mut header[100..108], u64::from(mode));
        write_number(&mut header[108..116], self.owner.0);
        write_number(&mut header[116..124], self.owner.1);
        write_number(&mut header[124..136], size);
        write_number(&mut header[136..148], self.mtime);
        header[156] = typeflag;
        write_field(&mut header, 157, &target[..target.len().min(100)]);
        write_field(&mut header, 257, b"ustar\x0000");
        header
    }

    fn header_and_data(mut self, mut header: [u8; BLOCK], data: &[u8]) -> Self {
        fix_checksum(&mut header);
        self.tar.extend_from_slice(&header);
        self.tar.extend_from_slice(data);
        pad(&mut self.tar);
        self
    }

    fn old_gnu_sparse(mut self, path: &[u8], size: u64, map: &[Region], data: &[u8]) -> Self {
        if path.len() > 100 {
            self = self.gnu_long(b'L', path);
        }
        self = self.flush_records();
        let mode = self.mode.take().unwrap_or(0o644);
        let mut header = self.header(path, b'S', mode, b"", data.len() as u64);
        write_field(&mut header, 257, b"ustar  \0");
        write_number(&mut header[483..495], size);
        let (first, rest) = map.split_at(map.len().min(4));
        write_regions(&mut header[386..482], first);
        header[482] = u8::from(!rest.is_empty());
        fix_checksum(&mut header);
        self.tar.extend_from_slice(&header);
        let mut blocks = rest.chunks(21).peekable();
        while let Some(regions) = blocks.next() {
            let mut block = [0; BLOCK];
            write_regions(&mut block[..504], regions);
            block[504] = u8::from(blocks.peek().is_some());
            self.tar.extend_from_slice(&block);
        }
        self.tar.extend_from_slice(data);
        pad(&mut self.tar);
        self
    }
}

/// Computes the checksum of a header and writes it into the header.
pub fn fix_checksum(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    write_number(&mut header[148..155], sum);
}

/// Compresses `bytes` to one gzip member.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let write = || -> io::Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes)?;
        encoder.finish()
    };
    write().unwrap_or_default()
}

/// Compresses `bytes` to one zstd frame with a checksum.
pub fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    let write = || -> io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.include_checksum(true)?;
        encoder.write_all(bytes)?;
        encoder.finish()
    };
    write().unwrap_or_default()
}

/// Returns one record of a pax extended header.
pub fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let bare = key.len() + value.len() + 3;
    let mut length = bare + bare.to_string().len();
    length = bare + length.to_string().len();
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

fn built(blob: Vec<u8>, tar: &[u8], suffix: &str) -> BuiltLayer {
    BuiltLayer {
        digest: Digest::sha256(&blob),
        diff_id: Digest::sha256(tar),
        blob,
        media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}

fn write_field(header: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes octal digits with a final NUL if they fit, and base-256 otherwise.
fn write_number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let octal = format!("{value:0digits$o}");
    if octal.len() == digits {
        field[..digits].copy_from_slice(octal.as_bytes());
        return;
    }
    field.fill(0);
    for (place, byte) in field.iter_mut().rev().zip(value.to_le_bytes()) {
        *place = byte;
    }
    field[0] |= 0x80;
}

fn write_regions(fields: &mut [u8], regions: &[Region]) {
    for (entry, region) in fields.chunks_exact_mut(24).zip(regions) {
        write_number(&mut entry[..12], region.offset);
        write_number(&mut entry[12..], region.length);
    }
}
