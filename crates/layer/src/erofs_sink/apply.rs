//! Writes the members of one tar as an image.
//!
//! Members can come in any order, because names are kept in memory until the end. A whiteout may come before
//! or after its replacement, a directory after its entries, and a later member replaces an earlier one of the
//! same name, regardless of type. Replaced content remains in the image without a name, because it was
//! written when it arrived.
//!
//! The image does not depend on the layers below. Directories that the tar implies, and a root that it does
//! not contain, belong to root and have mode 0755. Opaque directories have their attribute. Hard links to
//! files of lower layers are omitted. What these need is recorded for [`fixup`](super::fixup).

mod parents;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use self::parents::{Cache, Lookup};
use super::fitting::{fitting, relinked};
use crate::applied::{Applied, Directory, LowerLink};
use crate::apply::{Failure, Sink, members};
use crate::erofs::{Body, Error as ImageError, InodeId, Options, Special, Summary, Writer};
use crate::error::{Error, Fault, named};
use crate::metadata::{Metadata, OPAQUE_XATTR};
use crate::path::{self, escape};
use crate::path_set::PathSet;
use crate::space::Space;
use crate::tar::{Reader, Record, Region};
use larder_model::seal::Lost;
use larder_sys::{Dir, FileType};

/// Memory for a directory or a link to a lower file, without its bytes.
const ENTRY: usize = 320;

/// The destination of a layer, with the options and resources for writing it.
#[derive(Debug)]
pub struct Target<'a> {
    /// The file to which the image is written, or with which it is compared.
    pub image: Image,
    /// Directory for unnamed temporary files.
    pub dir: &'a Dir,
    /// The account from which space is reserved.
    pub space: &'a dyn Space,
    /// Options of the image, such as UUID and label.
    pub options: Options,
    /// Counter of content bytes written.
    pub written: &'a AtomicU64,
    /// `true` if replaced content is recorded for the tar-split file.
    pub keep_replaced: bool,
}

/// The file of an image, open for reading.
#[derive(Debug)]
pub enum Image {
    /// An empty file, also open for writing, to which the image is written.
    New(File),
    /// An existing image, with which the result is compared.
    Present(File),
}

/// A layer whose members have all been written.
#[derive(Debug)]
pub struct Filled<'a> {
    writer: Writer<'a>,
    replaced: Vec<(Vec<u8>, InodeId)>,
}

impl Filled<'_> {
    /// Reports whether later members replaced content of earlier ones.
    pub fn has_replaced(&self) -> bool {
        !self.replaced.is_empty()
    }

    /// Returns the replaced files in order, with their paths in the tar-split file.
    pub fn take_replaced(&mut self) -> Vec<(Vec<u8>, InodeId)> {
        std::mem::take(&mut self.replaced)
    }

    /// Returns the content of a replaced file.
    ///
    /// # Errors
    /// [`Error::Io`](ImageError::Io), if the file cannot be opened.
    pub fn content(&mut self, id: InodeId) -> Result<impl Read + use<>, ImageError> {
        self.writer.saved(id)
    }

    /// Completes the image on disk.
    ///
    /// # Errors
    /// The same errors as [`Writer::finish`].
    pub fn finish(self) -> Result<Summary, ImageError> {
        self.writer.finish()
    }
}

/// Writes all members of `reader`.
///
/// # Errors
/// [`Failure`] names the first member that fails.
pub fn apply<'a, B: BufRead, R: Record>(
    reader: &mut Reader<B, R>,
    target: Target<'a>,
) -> Result<(Applied, Filled<'a>), Failure> {
    let Target { image, dir, space, options, written, keep_replaced } = target;
    let writer = match image {
        Image::New(file) => Writer::new(file, dir, space, options),
        Image::Present(file) => Writer::compare(file, dir, space, options),
    };
    let mut layer = Layer::new(writer.map_err(|e| explain(b"", e))?, keep_replaced, written);
    let entries = members(reader, &mut layer)?;
    layer.describe_directories()?;
    let Layer { writer, directories, lower_links, lost, replaced, .. } = layer;
    Ok((Applied { directories, lower_links, entries, lost }, Filled { writer, replaced }))
}

/// A name in a directory of the layer.
struct Destination {
    parent: InodeId,
    /// Path of the member, with symbolic links resolved.
    at: Vec<u8>,
}

impl Destination {
    fn name(&self) -> &[u8] {
        path::split(&self.at).1
    }

    fn parts(&self) -> (InodeId, &[u8], &[u8]) {
        (self.parent, self.name(), &self.at)
    }
}

struct Layer<'a> {
    writer: Writer<'a>,
    cache: Cache,
    directories: BTreeMap<Vec<u8>, Directory>,
    lower_links: BTreeMap<Vec<u8>, LowerLink>,
    lost: Vec<Lost>,
    /// Number of losses whose memory is counted.
    counted: usize,
    /// Paths whose content the tar-split file does not refer to: hard links, and files whose bytes it
    /// contains.
    without_content: PathSet,
    replaced: Vec<(Vec<u8>, InodeId)>,
    keep_replaced: bool,
    written: &'a AtomicU64,
}

impl Sink for Layer<'_> {
    type Destination = Destination;

    fn root(&mut self, metadata: Metadata) -> Result<(), Error> {
        self.describe_plainly(b"", InodeId::ROOT, &metadata)?;
        self.directories.entry(Vec::new()).or_default().metadata = Some(metadata);
        Ok(())
    }

    fn destination(&mut self, clean: &[u8]) -> Result<Destination, Error> {
        let parent = self.parent(clean)?;
        let at = path::join(&parent.path, path::split(clean).1);
        Ok(Destination { parent: parent.id, at })
    }

    fn file<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Destination,
        _: u64,
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        self.make_room(destination)?;
        self.without_content.remove(&destination.at);
        let metadata = fitting(&destination.at, FileType::Regular, metadata, &mut self.lost)?;
        let Layer { writer, written, .. } = self;
        let body = writer.file(destination.parent, destination.name(), &metadata);
        let body = fill(reader, body.map_err(|e| explain(&destination.at, e))?, &destination.at, written)?;
        reader.end_file(&destination.at).map_err(Failure::Tar)?;
        body.end().map_err(|e| explain(&destination.at, e))?;
        Ok(())
    }

    fn sparse<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Destination,
        size: u64,
        map: &[Region],
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        self.make_room(destination)?;
        self.without_content.insert(&destination.at);
        let metadata = fitting(&destination.at, FileType::Regular, metadata, &mut self.lost)?;
        let Layer { writer, written, .. } = self;
        let body = writer.sparse(destination.parent, destination.name(), &metadata, size, map);
        let body = fill(reader, body.map_err(|e| explain(&destination.at, e))?, &destination.at, written)?;
        body.end().map_err(|e| explain(&destination.at, e))?;
        Ok(())
    }

    fn directory(&mut self, destination: &Destination, metadata: Metadata) -> Result<(), Error> {
        let (parent, name, at) = destination.parts();
        self.count_memory(at, metadata.xattr_bytes())?;
        let recreated = match self.writer.lookup(parent, name) {
            Some(id) if self.writer.file_type(id) == FileType::Directory => {
                self.describe_plainly(at, id, &metadata)?;
                self.directories.entry(at.to_vec()).or_default().metadata = Some(metadata);
                return Ok(());
            }
            Some(id) => self.writer.is_whiteout(id),
            None => false,
        };
        self.make_room(destination)?;
        let plain = Metadata { xattrs: Vec::new(), ..metadata };
        self.writer.directory(parent, name, &plain).map_err(|e| explain(at, e))?;
        let metadata = Some(Metadata { xattrs: metadata.xattrs, ..plain });
        self.directories.insert(at.to_vec(), Directory { metadata, opaque: false, recreated });
        Ok(())
    }

    fn symlink(
        &mut self,
        destination: &Destination,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let (parent, name, at) = destination.parts();
        self.make_room(destination)?;
        let metadata = fitting(at, FileType::Symlink, metadata, &mut self.lost)?;
        self.writer.symlink(parent, name, &metadata, target).map_err(|e| explain(at, e))?;
        Ok(())
    }

    fn node(
        &mut self,
        destination: &Destination,
        file_type: FileType,
        (major, minor): (u32, u32),
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let (parent, name, at) = destination.parts();
        let special = match file_type {
            FileType::CharDevice => Special::CharDevice(major, minor),
            FileType::BlockDevice => Special::BlockDevice(major, minor),
            _ => Special::Fifo,
        };
        self.make_room(destination)?;
        let metadata = fitting(at, file_type, metadata, &mut self.lost)?;
        self.writer.special(parent, name, &metadata, special).map_err(|e| explain(at, e))?;
        Ok(())
    }

    fn hard_link(
        &mut self,
        destination: &Destination,
        target: &[u8],
        metadata: Metadata,
    ) -> Result<(), Error> {
        let hostile = |fault| Error::hostile(&destination.at, fault);
        let (parent, name, at) = destination.parts();
        let (target_parent, target_name) = path::split(target);
        let source = match self.walk(target_parent, at, false)? {
            Lookup::Missing(resolved) => {
                return self.lower_link(destination, path::join(&resolved, target_name), metadata);
            }
            Lookup::Found(source) => source,
        };
        let target_at = path::join(&source.path, target_name);
        let present = self.writer.lookup(source.id, target_name);
        let Some(id) = present.filter(|id| !self.writer.is_whiteout(*id)) else {
            let target = match self.lower_links.get(&target_at) {
                Some(link) => link.target.clone(),
                None => target_at,
            };
            return self.lower_link(destination, target, metadata);
        };
        if self.writer.file_type(id) == FileType::Directory {
            return Err(hostile(Fault::LinkToDirectory(escape(&target_at))));
        }
        // Removing the existing entry would also remove the target of the link.
        if target_at.strip_prefix(at).is_some_and(|below| below.starts_with(b"/")) {
            return Err(hostile(Fault::LinkMissing(escape(&target_at))));
        }
        // A link to its own name stays as it is; replacing it would lose the file.
        if at != target_at {
            self.make_room(destination)?;
            self.writer.link(parent, name, id).map_err(|e| explain(at, e))?;
            self.without_content.insert(at);
        }
        self.describe_again(at, id, &metadata)
    }

    fn opaque(&mut self, clean: &[u8]) -> Result<(), Error> {
        let path = self.parent(clean)?.path.clone();
        self.directories.entry(path).or_default().opaque = true;
        Ok(())
    }

    /// If this layer has an entry of that name, it already hides the lower one. A directory must also hide
    /// the entries of the lower directory.
    fn whiteout(&mut self, clean: &[u8], hidden: &[u8]) -> Result<(), Error> {
        let parent = self.parent(clean)?;
        let (at, parent) = (path::join(&parent.path, hidden), parent.id);
        match self.writer.lookup(parent, hidden) {
            Some(id) if self.writer.file_type(id) == FileType::Directory => {
                self.directories.entry(at).or_default().recreated = true;
            }
            Some(_) => {}
            None if self.lower_links.contains_key(&at) => {}
            None => {
                let whiteout = Metadata { mode: 0, ..Metadata::implied() };
                self.writer
                    .special(parent, hidden, &whiteout, Special::CharDevice(0, 0))
                    .map_err(|e| explain(&at, e))?;
            }
        }
        Ok(())
    }

    fn done(&mut self) -> Result<(), Error> {
        for at in self.counted..self.lost.len() {
            let Lost { path, what } = &self.lost[at];
            let bytes = path.len() + what.len() + ENTRY;
            self.writer.count_memory(bytes).map_err(|e| explain(path.as_bytes(), e))?;
        }
        self.counted = self.lost.len();
        Ok(())
    }
}

impl<'a> Layer<'a> {
    fn new(writer: Writer<'a>, keep_replaced: bool, written: &'a AtomicU64) -> Self {
        Layer {
            writer,
            cache: Cache::default(),
            directories: BTreeMap::from([(Vec::new(), Directory::default())]),
            lower_links: BTreeMap::new(),
            lost: Vec::new(),
            counted: 0,
            without_content: PathSet::default(),
            replaced: Vec::new(),
            keep_replaced,
            written,
        }
    }

    /// Removes the existing entry at the path of a member.
    fn make_room(&mut self, destination: &Destination) -> Result<(), Error> {
        let (parent, name, at) = destination.parts();
        if !self.lower_links.is_empty() {
            self.lower_links.remove(at);
        }
        let Some(id) = self.writer.lookup(parent, name) else { return Ok(()) };
        match self.writer.file_type(id) {
            FileType::Directory => {
                self.cache.forget();
                path::remove_tree(&mut self.lower_links, at);
                path::remove_tree(&mut self.directories, at);
                self.discard_below(id, at)?;
            }
            FileType::Symlink => self.cache.forget(),
            _ => self.discard(id, at)?,
        }
        self.writer.remove(parent, name).map_err(|e| explain(at, e))
    }

    fn discard_below(&mut self, directory: InodeId, at: &[u8]) -> Result<(), Error> {
        if !self.keep_replaced {
            return Ok(());
        }
        let mut pending = vec![(directory, at.to_vec())];
        while let Some((directory, at)) = pending.pop() {
            for (name, id) in self.writer.entries(directory) {
                let at = path::join(&at, &name);
                match self.writer.file_type(id) {
                    FileType::Directory => pending.push((id, at)),
                    _ => self.discard(id, &at)?,
                }
            }
        }
        Ok(())
    }

    /// Records content that the tar-split file still needs.
    fn discard(&mut self, id: InodeId, at: &[u8]) -> Result<(), Error> {
        let is_content = self.writer.file_type(id) == FileType::Regular && self.writer.size(id) > 0;
        if self.keep_replaced && is_content && !self.without_content.contains(at) {
            self.count_memory(at, 0)?;
            self.replaced.push((at.to_vec(), id));
        }
        Ok(())
    }

    fn lower_link(
        &mut self,
        destination: &Destination,
        target: Vec<u8>,
        metadata: Metadata,
    ) -> Result<(), Error> {
        let (parent, name, at) = destination.parts();
        if self.writer.lookup(parent, name).is_some_and(|id| !self.writer.is_whiteout(id)) {
            self.make_room(destination)?;
        }
        self.count_memory(at, target.len() + metadata.xattr_bytes())?;
        self.lower_links.insert(at.to_vec(), LowerLink { target, metadata });
        Ok(())
    }

    /// Sets the final metadata of directories, because only now all of it is known. Directories that hide
    /// lower entries get the opaque attribute of overlayfs.
    fn describe_directories(&mut self) -> Result<(), Error> {
        let directories = std::mem::take(&mut self.directories);
        for (at, directory) in &directories {
            let implied = Metadata::implied();
            let described = directory.metadata.as_ref().unwrap_or(&implied);
            if described.xattrs.is_empty() && !directory.hides_lower() {
                continue;
            }
            let Some(id) = self.find(at) else { continue };
            let mut metadata = fitting(at, FileType::Directory, described, &mut self.lost)?.into_owned();
            if directory.hides_lower() {
                metadata.xattrs.push((OPAQUE_XATTR.to_vec(), b"y".to_vec()));
            }
            self.writer.describe(id, &metadata).map_err(|e| explain(at, e))?;
        }
        self.directories = directories;
        self.done()
    }

    /// Sets preliminary metadata of a directory, without attributes.
    fn describe_plainly(&mut self, at: &[u8], id: InodeId, metadata: &Metadata) -> Result<(), Error> {
        let plain = Metadata { xattrs: Vec::new(), ..*metadata };
        self.writer.describe(id, &plain).map_err(|e| explain(at, e))
    }

    /// Updates the metadata of an existing inode from a link member.
    fn describe_again(&mut self, at: &[u8], id: InodeId, link: &Metadata) -> Result<(), Error> {
        let present = self.writer.metadata(id).map_err(|e| explain(at, e))?;
        let metadata = relinked(at, self.writer.file_type(id), present, link, &mut self.lost)?;
        self.writer.describe(id, &metadata).map_err(|e| explain(at, e))
    }

    fn count_memory(&mut self, at: &[u8], bytes: usize) -> Result<(), Error> {
        self.writer.count_memory(at.len() + bytes + ENTRY).map_err(|e| explain(at, e))
    }
}

/// Copies the current content of `reader` to `body`.
fn fill<'w, 'a, B: BufRead, R: Record>(
    reader: &mut Reader<B, R>,
    mut body: Body<'w, 'a>,
    at: &[u8],
    written: &AtomicU64,
) -> Result<Body<'w, 'a>, Failure> {
    while let Some(chunk) = reader.data().map_err(Failure::Tar)? {
        body.write_at(chunk.offset, chunk.bytes).map_err(|e| explain(at, e))?;
        written.fetch_add(chunk.bytes.len() as u64, Ordering::Relaxed);
    }
    Ok(body)
}

/// Resolves `paths` in the layer that `writer` contains, for tests.
#[cfg(test)]
pub(crate) fn answers(
    writer: Writer<'_>,
    paths: &[Vec<u8>],
    make: bool,
) -> Vec<crate::resolve::tests::Answer> {
    let written = AtomicU64::new(0);
    let mut layer = Layer::new(writer, false, &written);
    paths.iter().map(|path| layer.answer(path, make)).collect()
}

/// Converts an error of the writer to one of the member at `at`.
pub(crate) fn explain(at: &[u8], error: ImageError) -> Error {
    match error {
        ImageError::Io { doing, source } => Error::Io { doing, path: named(at), source },
        ImageError::XattrTooLong { .. } => Error::hostile(at, Fault::AttributeTooLong),
        ImageError::Memory { limit } => Error::hostile(at, Fault::TooMuchMemory { limit }),
        ImageError::Fault(_) => Error::io("writing", at, io::Error::other(error)),
        other => Error::hostile(at, Fault::Unstorable(other.to_string())),
    }
}
