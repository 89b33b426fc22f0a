//! One read-only EROFS image of the whole volume, without our own directory: no builder comes back to it.
//!
//! Directories are walked by the bytes of their names, so the same volume gives the same image; its UUID is the seal's.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::error::Context;
use super::raw::{beside, line, read};
use super::{Error, Monitor, Report, Request};
use crate::layer::erofs::{self, InodeId, Label, Options, Special, Writer};
use crate::layer::metadata::Metadata;
use crate::layer::path::{self, shown};
use crate::layer::space::Uncounted;
use crate::layer::tar::Region;
use crate::model::seal::CacheManifest;
use crate::snapshot::output::Unfinished;
use crate::sys::walk::{Visitor, walk};
use crate::sys::{Dir, FileType, Stat, space, xattr};
use crate::volume::lease::Lease;
use crate::volume::{disk, layout, seal};

/// Bytes read at once.
const CHUNK: usize = 1 << 18;

pub(super) fn export(
    volume: &Path,
    out: &Path,
    request: &Request,
    monitor: &Monitor,
) -> Result<Report, Error> {
    if !request.images.is_empty() {
        return Err(Error::WholeDisk);
    }
    let entered = disk::enter(volume)?;
    let root = Dir::open(entered.path()).context("opening the volume", volume.display())?;
    let sealed = seal::read(entered.path())?;
    let _lease = match root.try_stat(layout::LARDER).context("examining", ".larder")? {
        Some(_) => {
            let leaving = || Error::Leaving { path: volume.display().to_string() };
            Some(Lease::shared(&root)?.ok_or_else(leaving)?)
        }
        None => None,
    };
    let unfinished = Unfinished::begin(out, request.force)?;
    let sum = Unfinished::begin(&beside(out), request.force)?;
    let mut image = unfinished.file()?;
    // The tree is read once, the image a second time for its sum.
    let content = space::occupied(&root).context("measuring", volume.display())?;
    monitor.expect(content);
    write(&root, &sealed, &image, &unfinished.parent()?, monitor)?;
    image.rewind().context("reading", "the image")?;
    let report = read(&image, monitor, &mut |_, _| Ok(()))?;
    if let Some(sha256) = &report.sha256 {
        io::Write::write_all(&mut sum.file()?, &line(sha256, out))
            .context("writing", "the sum beside the image")?;
    }
    unfinished.finish()?;
    sum.finish()?;
    Ok(report)
}

fn write(
    root: &Dir,
    sealed: &CacheManifest,
    image: &File,
    dir: &Dir,
    monitor: &Monitor,
) -> Result<(), Error> {
    let failed = |source: erofs::Error| Error::Erofs { path: String::new(), source };
    let mut uuid = [0; 16];
    for (byte, digits) in uuid.iter_mut().zip(sealed.digest.hex().as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    // A UUID of one's own making (RFC 9562, version 8).
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    let label = Label::new("larder").map_err(failed)?;
    let image = image.try_clone().context("opening", "the image")?;
    let space = Uncounted;
    let writer =
        Writer::new(image, dir, &space, Options { uuid, label, ..Options::default() }).map_err(failed)?;
    let mut tree = Tree { writer, directories: HashMap::new(), inodes: HashMap::new(), monitor };
    tree.directories.insert(Vec::new(), InodeId::ROOT);
    let top = root.try_clone().context("opening", "the volume")?;
    walk(top, &mut tree)?;
    tree.writer.finish().map_err(failed)?;
    Ok(())
}

/// A tree on its way into the image.
struct Tree<'a> {
    writer: Writer<'a>,
    /// Directories that were not entered yet, by path.
    directories: HashMap<Vec<u8>, InodeId>,
    /// Files with several names, by inode.
    inodes: HashMap<(u64, u64), InodeId>,
    monitor: &'a Monitor,
}

impl Visitor for Tree<'_> {
    type Error = Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let lost = || Error::Contradiction { what: format!("{:?} came from nowhere", shown(path)) };
        let id = self.directories.remove(path).ok_or_else(lost)?;
        let stat = dir.stat_self().map_err(|e| self.failed(path, e))?;
        let xattrs = xattr::all(dir).map_err(|e| self.failed(path, e))?;
        self.writer.describe(id, &metadata(&stat, xattrs)).map_err(|e| erofs_failed(path, e))?;
        let mut names = dir.names().map_err(|e| self.failed(path, e))?;
        names.sort();
        let mut directories = Vec::new();
        for name in names {
            if path.is_empty() && (name == layout::LARDER || name == layout::LOST_AND_FOUND) {
                continue;
            }
            let at = path::join(path, &name);
            let stat = dir.stat(&name).map_err(|e| self.failed(&at, e))?;
            if stat.is_dir() {
                let made = self.writer.directory(id, &name, &Metadata::implied());
                self.directories.insert(at.clone(), made.map_err(|e| erofs_failed(&at, e))?);
                directories.push(name);
            } else {
                self.inode(dir, &name, id, &stat, &at)?;
            }
        }
        // The walk takes the last one first.
        directories.reverse();
        Ok(directories)
    }

    fn failed(&mut self, path: &[u8], source: io::Error) -> Error {
        Error::Io { doing: "reading", what: format!("{:?}", shown(path)), source }
    }
}

impl Tree<'_> {
    fn inode(
        &mut self,
        dir: &Dir,
        name: &[u8],
        parent: InodeId,
        stat: &Stat,
        at: &[u8],
    ) -> Result<(), Error> {
        if let Some(id) = self.inodes.get(&stat.identity) {
            return self.writer.link(parent, name, *id).map_err(|e| erofs_failed(at, e));
        }
        let xattrs = xattr::all_at(dir, name).map_err(|e| self.failed(at, e))?;
        let metadata = metadata(stat, xattrs);
        let special = |writer: &mut Writer<'_>, special| {
            writer.special(parent, name, &metadata, special).map_err(|e| erofs_failed(at, e))
        };
        let (major, minor) = stat.device;
        let id = match stat.file_type {
            FileType::Regular => self.file(dir, name, parent, stat, &metadata, at)?,
            FileType::Symlink => {
                let target = dir.read_link(name).map_err(|e| self.failed(at, e))?;
                let made = self.writer.symlink(parent, name, &metadata, &target);
                made.map_err(|e| erofs_failed(at, e))?
            }
            FileType::CharDevice => special(&mut self.writer, Special::CharDevice(major, minor))?,
            FileType::BlockDevice => special(&mut self.writer, Special::BlockDevice(major, minor))?,
            FileType::Fifo => special(&mut self.writer, Special::Fifo)?,
            FileType::Socket => special(&mut self.writer, Special::Socket)?,
            FileType::Directory => return Ok(()),
        };
        if stat.links > 1 {
            self.inodes.insert(stat.identity, id);
        }
        self.monitor.advance(0)
    }

    fn file(
        &mut self,
        dir: &Dir,
        name: &[u8],
        parent: InodeId,
        stat: &Stat,
        metadata: &Metadata,
        at: &[u8],
    ) -> Result<InodeId, Error> {
        let failed = |source| Error::Io { doing: "reading", what: format!("{:?}", shown(at)), source };
        let written = |e| erofs_failed(at, e);
        let file = dir.open_file(name).map_err(failed)?;
        let map = if stat.allocated < stat.size { regions(&file, stat.size).map_err(failed)? } else { None };
        let whole = [Region { offset: 0, length: stat.size }];
        let mut body = match &map {
            Some(map) => self.writer.sparse(parent, name, metadata, stat.size, map),
            None => self.writer.file(parent, name, metadata),
        }
        .map_err(written)?;
        let mut buffer = vec![0; CHUNK];
        for region in map.as_deref().unwrap_or(&whole) {
            let (mut offset, end) = (region.offset, region.offset + region.length);
            while offset < end {
                let len = usize::try_from(end - offset).unwrap_or(CHUNK).min(CHUNK);
                file.read_exact_at(&mut buffer[..len], offset).map_err(failed)?;
                body.write_at(offset, &buffer[..len]).map_err(written)?;
                offset += len as u64;
                self.monitor.advance(len as u64)?;
            }
        }
        body.end().map_err(written)
    }
}

/// Where a file has data; nothing where it has no hole.
fn regions(file: &File, size: u64) -> io::Result<Option<Vec<Region>>> {
    let mut regions = Vec::new();
    let mut at = 0;
    while at < size {
        let Some(data) = space::next_data(file, at)? else { break };
        let end = data.end.min(size);
        if data.start < end {
            regions.push(Region { offset: data.start, length: end - data.start });
        }
        at = data.end;
    }
    let whole = regions.len() == 1 && regions[0].offset == 0 && regions[0].length == size;
    Ok((!whole).then_some(regions))
}

fn metadata(stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Metadata {
    // A label of the host's policy is not the image's.
    let mut xattrs: Vec<_> = xattrs.into_iter().filter(|(name, _)| name != b"security.selinux").collect();
    xattrs.sort();
    Metadata { mode: stat.mode, uid: stat.uid, gid: stat.gid, mtime: stat.mtime, xattrs }
}

fn erofs_failed(path: &[u8], source: erofs::Error) -> Error {
    Error::Erofs { path: shown(path).to_string(), source }
}
