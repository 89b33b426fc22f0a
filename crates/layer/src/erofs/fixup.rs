//! Builds the part of a layer's image that depends on the layers below it: a small image, mounted on top of
//! the layer's own.
//!
//! The rules are those of [`settle`](crate::overlay::settle). The image of a layer is the same under any
//! parents, so everything that depends on the parents goes into a second image:
//!
//! 1. A hard link to a file of a lower layer copies that file up. No other content is stored twice.
//! 2. Overlayfs ignores whether the root is opaque, so an opaque root gets a whiteout for each visible lower
//!    name.
//! 3. A directory that the tar implies gets mode, owner, attributes and time of the lower directory at its
//!    path, if these differ from those in the image. The time of the root alone is not a reason: a
//!    container's own directory is on top of it, and hardly any tar has an entry for it. An image of 120
//!    layers would need 240 mounts, and overlayfs does not accept such a list from podman.
//!
//! The parents of all these entries are included as well, with the metadata of the layer. Most layers need
//! nothing of this, and then there is no second image.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::rc::Rc;

use super::apply::{Image, explain};
use super::error::Error as ImageError;
use super::fitting::relinked;
use super::inode::InodeId;
use super::writer::{Special, Writer};
use super::{Options, Summary};
use crate::error::{Context as _, Error, Fault};
use crate::metadata::Metadata;
use crate::overlay::lower::{self, LinkTarget, Lower, LowerEntry, Part};
use crate::overlay::settle::{hidden, inherited, is_hidden};
use crate::overlay::{Applied, Directory, LowerLink, copy};
use crate::path::{self, escape, shown};
use crate::space::Space;
use crate::stored::StoredDir;
use crate::tar::Region;
use larder_model::seal::{Lost, Settled};
use larder_sys::{Dir, FileType, Stat};

/// Size of one copy operation, bytes.
const CHUNK: usize = 1 << 18;

/// The policy on whether the time of a lower directory alone requires an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The time requires an image.
    Kept,
    /// The time is ignored, as in volumes of earlier versions, in which such a directory has time 0.
    Left,
}

/// A second image that is mounted on top of a layer.
#[derive(Debug)]
pub struct Fixup {
    nodes: BTreeMap<Vec<u8>, Node>,
    copies: Vec<Copied>,
}

#[derive(Debug)]
enum Node {
    Directory(Metadata),
    Whiteout,
    /// Index in the list of copies.
    Copy(usize),
}

/// A file of a lower layer to be copied.
#[derive(Debug)]
struct Copied {
    dir: Rc<Part>,
    name: Vec<u8>,
    stat: Stat,
    metadata: Metadata,
}

/// Returns what settling the layer in `image` on top of `lower` changes, and the image that it needs. `None`
/// if it needs none. The changes are reported as for a layer in directory form. Metadata that an image cannot
/// store is added to the losses of `applied`.
///
/// # Errors
/// [`Error`], if the target of a link does not exist or the layers cannot be read.
pub fn plan(
    image: &StoredDir,
    applied: &mut Applied,
    lower: &Lower,
    times: Times,
) -> Result<(Settled, Option<Fixup>), Error> {
    let mut planning = Planning {
        times,
        image,
        directories: &applied.directories,
        lower,
        nodes: BTreeMap::new(),
        copies: Vec::new(),
        settled: Settled::default(),
        lost: Vec::new(),
    };
    planning.links(&applied.lower_links)?;
    planning.opaque_root()?;
    planning.directories()?;
    let Planning { nodes, copies, settled, mut lost, .. } = planning;
    applied.lower_links.clear();
    applied.lost.append(&mut lost);
    Ok((settled, (!nodes.is_empty()).then_some(Fixup { nodes, copies })))
}

struct Planning<'a> {
    times: Times,
    image: &'a StoredDir,
    directories: &'a BTreeMap<Vec<u8>, Directory>,
    lower: &'a Lower,
    nodes: BTreeMap<Vec<u8>, Node>,
    copies: Vec<Copied>,
    settled: Settled,
    lost: Vec<Lost>,
}

impl Planning<'_> {
    fn links(&mut self, links: &BTreeMap<Vec<u8>, LowerLink>) -> Result<(), Error> {
        // Links to the same file share one inode.
        let mut copied: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (at, LowerLink { target, metadata }) in links {
            let found = self.lower.link_target(target).context("searching the lower layers for", target)?;
            let Some(LinkTarget { path: resolved, dir, stat }) = found else {
                return Err(Error::hostile(at, Fault::LinkMissing(escape(target))));
            };
            let number = match copied.get(&resolved) {
                Some(number) => *number,
                None => {
                    let number = self.copy_up(&resolved, dir, stat)?;
                    copied.insert(resolved, number);
                    number
                }
            };
            let copy = &mut self.copies[number];
            let present = copy.metadata.clone();
            copy.metadata = relinked(at, copy.stat.file_type, present, metadata, &mut self.lost)?;
            self.nodes.insert(at.clone(), Node::Copy(number));
        }
        Ok(())
    }

    /// Adds a copy of a lower file, also under its own path if that is still visible through this layer.
    fn copy_up(&mut self, resolved: &[u8], dir: Rc<Part>, stat: Stat) -> Result<usize, Error> {
        let name = path::split(resolved).1.to_vec();
        let metadata =
            copy::metadata_of(&dir, &name, &stat).context("reading the attributes of", resolved)?;
        let number = self.copies.len();
        self.copies.push(Copied { dir, name, stat, metadata });
        if self.is_free(resolved)? {
            self.nodes.insert(resolved.to_vec(), Node::Copy(number));
        }
        self.settled.copied_up.push(shown(resolved));
        Ok(number)
    }

    fn is_free(&self, resolved: &[u8]) -> Result<bool, Error> {
        if is_hidden(self.directories, resolved) {
            return Ok(false);
        }
        let mut at = Vec::new();
        // The directory of the image at `at`; `None` beyond the last existing one.
        let mut dir = Some(self.image.try_clone().context("opening", b"")?);
        for component in path::components(resolved) {
            path::push(&mut at, component);
            if self.nodes.contains_key(&at) {
                return Ok(false);
            }
            let Some(parent) = &dir else { continue };
            dir = match parent.try_stat(component).context("examining", &at)? {
                None => None,
                Some(stat) if stat.is_dir() => Some(parent.open_dir(component).context("opening", &at)?),
                Some(_) => return Ok(false),
            };
        }
        // A directory of this name belongs to the layer.
        Ok(dir.is_none())
    }

    /// Hides all lower names by whiteouts, including those in subdirectories that both layers have.
    fn opaque_root(&mut self) -> Result<(), Error> {
        if !self.directories.get(&Vec::new()).is_some_and(Directory::hides_lower) {
            return Ok(());
        }
        let mut pending = vec![Vec::new()];
        while let Some(path) = pending.pop() {
            let shows = self.lower.show(&path).context("searching the lower layers for", &path)?;
            let LowerEntry::Directory(parts) = shows else { continue };
            let dir = self.open(&path)?;
            for name in lower::names(&parts).context("listing the lower layers at", &path)? {
                let at = path::join(&path, &name);
                match dir.try_stat(&name).context("examining", &at)? {
                    // The attribute of this directory hides the rest.
                    Some(_) if self.directories.get(&at).is_some_and(Directory::hides_lower) => {}
                    Some(stat) if stat.is_dir() => pending.push(at),
                    Some(_) => {}
                    None => {
                        self.nodes.entry(at).or_insert(Node::Whiteout);
                    }
                }
            }
        }
        self.settled.opaque_as_whiteouts.push(shown(b""));
        Ok(())
    }

    /// Adds directories that need metadata, and the parents of all entries.
    fn directories(&mut self) -> Result<(), Error> {
        let hidden = hidden(self.directories);
        let mut needed: HashSet<Vec<u8>> = HashSet::new();
        for at in self.nodes.keys() {
            above(at, &mut needed);
        }
        let mut from_below = BTreeMap::new();
        for (at, directory) in self.directories {
            if let Some(metadata) = inherited(directory, hidden.contains(at), at, self.lower)? {
                let wanted = !is_implied(&metadata) || self.has_time_of_its_own(at, &metadata);
                if wanted && needed.insert(at.clone()) {
                    above(at, &mut needed);
                }
                from_below.insert(at, metadata);
            }
        }
        let mut needed: Vec<Vec<u8>> = needed.into_iter().collect();
        needed.sort_unstable();
        for at in needed {
            let below = match self.directories.contains_key(&at) {
                true => from_below.remove(&at),
                // Created only for a copy.
                false => inherited(&Directory::default(), false, &at, self.lower)?,
            };
            let metadata = match below {
                Some(metadata) => {
                    self.settled.inherited.push(shown(&at));
                    metadata
                }
                None if self.directories.contains_key(&at) => {
                    copy::metadata_of_dir(&self.open(&at)?).context("reading the attributes of", &at)?
                }
                None => Metadata::implied(),
            };
            self.nodes.insert(at, Node::Directory(metadata));
        }
        Ok(())
    }

    /// Reports whether the time of a lower directory requires an entry for it.
    fn has_time_of_its_own(&self, at: &[u8], metadata: &Metadata) -> bool {
        self.times == Times::Kept && !at.is_empty() && metadata.mtime != Metadata::implied().mtime
    }

    /// Opens a directory of the image.
    fn open(&self, at: &[u8]) -> Result<StoredDir, Error> {
        let mut dir = self.image.try_clone().context("opening", b"")?;
        for component in path::components(at) {
            dir = dir.open_dir(component).context("opening", at)?;
        }
        Ok(dir)
    }
}

/// Adds all parents of `at`.
fn above(at: &[u8], to: &mut HashSet<Vec<u8>>) {
    let mut at = at;
    while !at.is_empty() {
        at = path::split(at).0;
        if !to.insert(at.to_vec()) {
            return;
        }
    }
}

/// Reports whether the metadata equals that of an implied directory, apart from the time.
fn is_implied(metadata: &Metadata) -> bool {
    let implied = Metadata { mtime: metadata.mtime, ..Metadata::implied() };
    *metadata == implied
}

impl Fixup {
    /// Writes the image, or compares it with an existing one. Deferred data goes to unnamed files in `dir`.
    ///
    /// # Errors
    /// [`Error`] names the path that cannot be written.
    pub fn write(
        &self,
        image: Image,
        dir: &Dir,
        space: &dyn Space,
        options: Options,
    ) -> Result<Summary, Error> {
        let writer = match image {
            Image::New(file) => Writer::new(file, dir, space, options),
            Image::Present(file) => Writer::compare(file, dir, space, options),
        };
        let mut writer = writer.map_err(|e| explain(b"", e))?;
        let mut directories = BTreeMap::from([(Vec::new(), InodeId::ROOT)]);
        let mut made: Vec<Option<InodeId>> = vec![None; self.copies.len()];
        for (at, node) in &self.nodes {
            let (parent, name) = path::split(at);
            let failed = |e: ImageError| explain(at, e);
            let Some(parent) = directories.get(parent).copied() else {
                return Err(failed(ImageError::Parent));
            };
            match node {
                Node::Directory(metadata) if at.is_empty() => {
                    writer.describe(InodeId::ROOT, metadata).map_err(failed)?;
                }
                Node::Directory(metadata) => {
                    let id = writer.directory(parent, name, metadata).map_err(failed)?;
                    directories.insert(at.clone(), id);
                }
                Node::Whiteout => {
                    let whiteout = Metadata { mode: 0, ..Metadata::implied() };
                    let device = Special::CharDevice(0, 0);
                    writer.special(parent, name, &whiteout, device).map_err(failed)?;
                }
                Node::Copy(number) => match made[*number] {
                    Some(id) => writer.link(parent, name, id).map_err(failed)?,
                    None => {
                        made[*number] = Some(self.copies[*number].write(&mut writer, parent, name, at)?)
                    }
                },
            }
        }
        writer.finish().map_err(|e| explain(b"", e))
    }
}

impl Copied {
    fn write(
        &self,
        writer: &mut Writer<'_>,
        parent: InodeId,
        name: &[u8],
        at: &[u8],
    ) -> Result<InodeId, Error> {
        let failed = |e: ImageError| explain(at, e);
        let Copied { dir, name: source, stat, metadata } = self;
        let (major, minor) = stat.device;
        let special = match stat.file_type {
            FileType::Regular => return self.content(writer, parent, name, at),
            FileType::Symlink => {
                let text = dir.read_link(source).context("reading the link", at)?;
                return writer.symlink(parent, name, metadata, &text).map_err(failed);
            }
            FileType::CharDevice => Special::CharDevice(major, minor),
            FileType::BlockDevice => Special::BlockDevice(major, minor),
            FileType::Fifo => Special::Fifo,
            FileType::Socket => Special::Socket,
            FileType::Directory => return Err(failed(ImageError::LinkToDirectory)),
        };
        writer.special(parent, name, metadata, special).map_err(failed)
    }

    fn content(
        &self,
        writer: &mut Writer<'_>,
        parent: InodeId,
        name: &[u8],
        at: &[u8],
    ) -> Result<InodeId, Error> {
        let failed = |e: ImageError| explain(at, e);
        let mut file = self.dir.open_file(&self.name).context("opening", at)?;
        let size = self.stat.size;
        let map = file.regions().context("searching for data in", at)?;
        let mut body = match map.as_slice() {
            [Region { offset: 0, length }] if *length == size => writer.file(parent, name, &self.metadata),
            [] if size == 0 => writer.file(parent, name, &self.metadata),
            map => writer.sparse(parent, name, &self.metadata, size, map),
        }
        .map_err(failed)?;
        let mut buffer = vec![0; CHUNK];
        for Region { offset, length } in map {
            file.seek(SeekFrom::Start(offset)).context("reading", at)?;
            let (mut offset, end) = (offset, offset + length);
            while offset < end {
                let len = usize::try_from(end - offset).map_or(CHUNK, |left| left.min(CHUNK));
                file.read_exact(&mut buffer[..len]).context("reading", at)?;
                body.write_at(offset, &buffer[..len]).map_err(failed)?;
                offset += len as u64;
            }
        }
        body.end().map_err(failed)
    }
}
