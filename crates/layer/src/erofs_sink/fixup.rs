//! Builds the part of a layer's image that depends on the layers below it: a small image, mounted on top of
//! the layer's own.
//!
//! The rules are those of [`crate::settle`]. The image of a layer is the same under any parents, so
//! everything that depends on the parents goes into a second image:
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

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::mem;
use std::rc::Rc;

use super::apply::{Image, explain};
use super::fitting::relinked;
use crate::applied::Applied;
use crate::erofs::{Error as ImageError, InodeId, Options, Special, Summary, Writer};
use crate::error::{Context as _, Error, Fault};
use crate::lower::{Lower, LowerEntry, Part};
use crate::metadata::Metadata;
use crate::path::{self, escape, shown};
use crate::settle::{self, Copy, Link, OwnTree, Plan};
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
    nodes: Nodes,
    copies: Vec<Copied>,
}

/// Entries of the image by path.
type Nodes = BTreeMap<Vec<u8>, Node>;

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
    let directories = &applied.directories;
    let mut own = OwnImage { image, open: None };
    let plan = settle::plan(directories, mem::take(&mut applied.lower_links), lower, &mut own)?;
    let mut settled = plan.settled();
    let Plan { copies, links, whiteouts, mut inherited, .. } = plan;
    let (mut nodes, copies) = link(copies, links, lower, &mut applied.lost)?;
    nodes.extend(whiteouts.into_iter().map(|at| (at, Node::Whiteout)));
    let needed = needed(&nodes, &inherited, times);
    settled.inherited = needed.iter().filter(|at| inherited.contains_key(*at)).map(|at| shown(at)).collect();
    for at in needed {
        let metadata = match inherited.remove(&at) {
            Some(metadata) => metadata,
            None if directories.contains_key(&at) => {
                let dir = own.directory(&at).context("opening", &at)?;
                dir.metadata_self().context("reading the attributes of", &at)?
            }
            None => Metadata::implied(),
        };
        nodes.insert(at, Node::Directory(metadata));
    }
    Ok((settled, (!nodes.is_empty()).then_some(Fixup { nodes, copies })))
}

/// An image as the layer's own tree.
struct OwnImage<'a> {
    image: &'a StoredDir,
    /// The directory that was opened last, and its path.
    open: Option<(Vec<u8>, StoredDir)>,
}

impl OwnImage<'_> {
    fn directory(&mut self, path: &[u8]) -> io::Result<&StoredDir> {
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            let mut dir = self.image.try_clone()?;
            for component in path::components(path) {
                dir = dir.open_dir(component)?;
            }
            self.open = Some((path.to_vec(), dir));
        }
        Ok(self.open.as_ref().map_or(self.image, |(_, dir)| dir))
    }
}

impl OwnTree for OwnImage<'_> {
    const MASKS_OPAQUE: bool = false;

    fn contains(&mut self, path: &[u8]) -> Result<bool, Error> {
        let (parent, name) = path::split(path);
        let found = self.directory(parent).and_then(|dir| dir.try_stat(name));
        Ok(found.context("examining", path)?.is_some())
    }

    fn has_attribute(&self, _: &[u8]) -> bool {
        true
    }
}

/// Returns the names of the copies, and the copies with the metadata that their links give them.
fn link(
    copies: Vec<Copy>,
    links: Vec<Link>,
    lower: &Lower,
    lost: &mut Vec<Lost>,
) -> Result<(Nodes, Vec<Copied>), Error> {
    let mut nodes = Nodes::new();
    let mut copied = Vec::with_capacity(copies.len());
    for Copy { path: original, keeps_path, stat, metadata } in copies {
        let shows = lower.show(&original).context("searching the lower layers for", &original)?;
        let LowerEntry::Other { dir, .. } = shows else {
            return Err(Error::hostile(&original, Fault::LinkMissing(escape(&original))));
        };
        let name = path::split(&original).1.to_vec();
        if keeps_path {
            nodes.insert(original, Node::Copy(copied.len()));
        }
        copied.push(Copied { dir, name, stat, metadata });
    }
    for Link { path: at, copy, metadata: link } in links {
        let Copied { stat, metadata, .. } = &mut copied[copy];
        let present = mem::replace(metadata, Metadata::implied());
        *metadata = relinked(&at, stat.file_type, present, &link, lost)?;
        nodes.insert(at, Node::Copy(copy));
    }
    Ok((nodes, copied))
}

/// Returns the directories that need an entry: those with metadata of their own, and the parents of all
/// entries.
fn needed(nodes: &Nodes, inherited: &BTreeMap<Vec<u8>, Metadata>, times: Times) -> BTreeSet<Vec<u8>> {
    let mut needed = BTreeSet::new();
    for at in nodes.keys() {
        add_parents(at, &mut needed);
    }
    for (at, metadata) in inherited {
        // A directory that only a copy requires is a parent, so it is in the set already.
        let has_time = times == Times::Kept && !at.is_empty() && metadata.mtime != Metadata::implied().mtime;
        if (!is_implied(metadata) || has_time) && needed.insert(at.clone()) {
            add_parents(at, &mut needed);
        }
    }
    needed
}

/// Adds all parents of `at`.
fn add_parents(at: &[u8], to: &mut BTreeSet<Vec<u8>>) {
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
