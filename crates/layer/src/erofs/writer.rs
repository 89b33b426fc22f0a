//! Names and inodes of an image until it is finished.

mod body;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;

pub use self::body::Body;

use super::super::metadata::Metadata;
use super::super::space::Space;
use super::super::tar::Region;
use super::blocks::Blocks;
use super::chunks;
use super::error::{Context, Error};
use super::format::{MAX_TAIL, NAME_MAX, device_number};
use super::inode::{Content, Directory, DirectoryBlocks, Inode, InodeId};
use super::options::Options;
use super::saved::Saved;
use super::spill::Spill;
use super::xattrs::Xattrs;
use larder_sys::{Dir, FileType};

/// Memory for an inode and one name, without the bytes of the name: the inode, its entry in the map of its
/// directory, and the allocation of the name. Measured with names of 22 bytes: 165 bytes in all
/// (`benches/erofs.rs`).
const ENTRY: usize = 160;

/// Additional memory for a directory, bytes.
const DIRECTORY: usize = 48;

/// An inode without content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A character device with major and minor number; 0:0 is the whiteout of overlayfs.
    CharDevice(u32, u32),
    /// A block device with major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// An image that is being written. If dropped before [`finish`](Writer::finish), the file does not contain a
/// valid image.
#[derive(Debug)]
pub struct Writer<'a> {
    pub(super) options: Options,
    pub(super) blocks: Blocks<'a>,
    pub(super) spill: Spill<'a>,
    pub(super) xattrs: Xattrs<'a>,
    pub(super) inodes: Vec<Inode>,
    pub(super) directories: Vec<Directory>,
    memory_used: usize,
}

impl<'a> Writer<'a> {
    /// Starts an image in the empty file `image`. Data that must be deferred goes to unnamed files in `dir`;
    /// space for everything is reserved from `space`. The root directory exists from the start, with the
    /// metadata of [`Metadata::implied`].
    ///
    /// # Errors
    /// [`Error::Io`], if a file cannot be created.
    pub fn new(image: File, dir: &Dir, space: &'a dyn Space, options: Options) -> Result<Self, Error> {
        Writer::on(Blocks::new(image, space)?, dir, space, options)
    }

    /// Starts a comparison instead of writing: every call compares the bytes that it would write with those
    /// in `image`, and fails with [`Error::Differs`] if they differ. If [`finish`](Writer::finish) succeeds,
    /// both are identical, byte by byte.
    ///
    /// # Errors
    /// [`Error::Io`], if a file cannot be created.
    pub fn compare(image: File, dir: &Dir, space: &'a dyn Space, options: Options) -> Result<Self, Error> {
        Writer::on(Blocks::compare(image), dir, space, options)
    }

    fn on(blocks: Blocks<'a>, dir: &Dir, space: &'a dyn Space, options: Options) -> Result<Self, Error> {
        let mut writer = Writer {
            options,
            blocks,
            spill: Spill::new(dir, b"erofs-tails", space)?,
            xattrs: Xattrs::new(dir, space)?,
            inodes: Vec::new(),
            directories: Vec::new(),
            memory_used: 0,
        };
        let root = writer.inode(FileType::Directory, &Metadata::implied())?;
        writer.inodes.push(Inode { links: 2, content: Content::Directory(0), ..root });
        writer.directories.push(Directory {
            parent: InodeId::ROOT,
            entries: BTreeMap::new(),
            position: DirectoryBlocks::default(),
        });
        Ok(writer)
    }

    /// Replaces the metadata of an inode.
    ///
    /// # Errors
    /// Errors about attributes, [`Error::Io`], [`Error::Memory`].
    pub fn describe(&mut self, id: InodeId, metadata: &Metadata) -> Result<(), Error> {
        let described = self.inode(self.inodes[id.index()].file_type(), metadata)?;
        let inode = &mut self.inodes[id.index()];
        let Inode { size, content, links, .. } = *inode;
        *inode = Inode { size, content, links, ..described };
        Ok(())
    }

    /// Returns the metadata of an inode.
    ///
    /// # Errors
    /// [`Error::Io`], if the spill file cannot be read.
    pub fn metadata(&mut self, id: InodeId) -> Result<Metadata, Error> {
        let Inode { mtime, uid, gid, xattrs, mode, .. } = self.inodes[id.index()];
        let mode = u32::from(mode) & 0o7777;
        Ok(Metadata { mode, uid, gid, mtime, xattrs: self.xattrs.get(xattrs)? })
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Exists`], [`Error::Parent`], errors about attributes, [`Error::Io`],
    /// [`Error::Memory`].
    pub fn directory(&mut self, parent: InodeId, name: &[u8], metadata: &Metadata) -> Result<InodeId, Error> {
        let name = self.new_name(parent, name)?;
        self.count_memory(DIRECTORY)?;
        let mut inode = self.inode(FileType::Directory, metadata)?;
        let index = u32::try_from(self.directories.len()).map_err(|_| Error::TooManyEntries)?;
        inode.content = Content::Directory(index);
        inode.links = 2;
        let id = self.add(parent, name, inode)?;
        self.directories.push(Directory {
            parent,
            entries: BTreeMap::new(),
            position: DirectoryBlocks::default(),
        });
        let above = &mut self.inodes[parent.index()];
        above.links = above.links.checked_add(1).ok_or(Error::TooManyEntries)?;
        Ok(id)
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// The same errors as [`directory`](Writer::directory), and [`Error::LinkText`].
    pub fn symlink(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: &Metadata,
        target: &[u8],
    ) -> Result<InodeId, Error> {
        if target.is_empty() || target.len() > 4095 || target.contains(&0) {
            return Err(Error::LinkText);
        }
        let name = self.new_name(parent, name)?;
        let mut inode = self.inode(FileType::Symlink, metadata)?;
        inode.size = target.len() as u64;
        let first = self.blocks.begin();
        self.blocks.push(target)?;
        inode.content = self.store_tail(first)?;
        self.add(parent, name, inode)
    }

    /// Creates an inode without content.
    ///
    /// # Errors
    /// The same errors as [`directory`](Writer::directory), and [`Error::Device`].
    pub fn special(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: &Metadata,
        special: Special,
    ) -> Result<InodeId, Error> {
        let device = |major, minor| {
            let number = device_number(major, minor).ok_or(Error::Device { major, minor })?;
            Ok::<_, Error>(Content::Device(number))
        };
        let (file_type, content) = match special {
            Special::CharDevice(major, minor) => (FileType::CharDevice, device(major, minor)?),
            Special::BlockDevice(major, minor) => (FileType::BlockDevice, device(major, minor)?),
            Special::Fifo => (FileType::Fifo, Content::None),
            Special::Socket => (FileType::Socket, Content::None),
        };
        let name = self.new_name(parent, name)?;
        let mut inode = self.inode(file_type, metadata)?;
        inode.content = content;
        self.add(parent, name, inode)
    }

    /// Starts a regular file. The caller writes the content to the returned [`Body`]; the file is added to
    /// the tree when that [ends](Body::end).
    ///
    /// # Errors
    /// The same errors as [`directory`](Writer::directory).
    pub fn file(&mut self, parent: InodeId, name: &[u8], metadata: &Metadata) -> Result<Body<'_, 'a>, Error> {
        let name = self.new_name(parent, name)?;
        let inode = self.inode(FileType::Regular, metadata)?;
        Ok(Body::new(self, parent, name, inode))
    }

    /// Starts a regular file of `size` bytes with holes everywhere outside the regions of `map`.
    ///
    /// # Errors
    /// The same errors as [`file`](Writer::file), and [`Error::Map`].
    pub fn sparse(
        &mut self,
        parent: InodeId,
        name: &[u8],
        metadata: &Metadata,
        size: u64,
        map: &[Region],
    ) -> Result<Body<'_, 'a>, Error> {
        let plan = chunks::plan(size, map)?;
        Ok(self.file(parent, name, metadata)?.with_holes(size, plan))
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// The same errors as [`directory`](Writer::directory), and [`Error::LinkToDirectory`].
    pub fn link(&mut self, parent: InodeId, name: &[u8], id: InodeId) -> Result<(), Error> {
        let name = self.new_name(parent, name)?;
        let inode = &mut self.inodes[id.index()];
        if inode.file_type() == FileType::Directory {
            return Err(Error::LinkToDirectory);
        }
        inode.links = inode.links.checked_add(1).ok_or(Error::TooManyEntries)?;
        self.name(parent, name, id)
    }

    /// Removes a name from a directory if it exists, and everything below it if it is a directory. Inodes
    /// without a name are not written.
    ///
    /// # Errors
    /// [`Error::Parent`], if `parent` is not a directory.
    pub fn remove(&mut self, parent: InodeId, name: &[u8]) -> Result<(), Error> {
        let index = self.directory_of(parent)?;
        let Some(id) = self.directories[index].entries.remove(name) else { return Ok(()) };
        self.memory_used = self.memory_used.saturating_sub(name.len());
        if self.inodes[id.index()].file_type() == FileType::Directory {
            self.inodes[parent.index()].links -= 1;
        }
        let mut removed = vec![id];
        while let Some(id) = removed.pop() {
            let inode = &mut self.inodes[id.index()];
            match inode.content {
                Content::Directory(index) => {
                    inode.links = 0;
                    let entries = std::mem::take(&mut self.directories[index as usize].entries);
                    let names: usize = entries.keys().map(|name| name.len()).sum();
                    self.memory_used = self.memory_used.saturating_sub(names);
                    removed.extend(entries.into_values());
                }
                _ => inode.links = inode.links.saturating_sub(1),
            }
        }
        Ok(())
    }

    /// Returns the inode with this name in a directory; `None` if there is none.
    pub fn lookup(&self, parent: InodeId, name: &[u8]) -> Option<InodeId> {
        let index = self.directory_of(parent).ok()?;
        self.directories[index].entries.get(name).copied()
    }

    /// Returns the parent of a directory; the parent of the root is the root. `None` if the inode is not a
    /// directory.
    pub fn parent(&self, directory: InodeId) -> Option<InodeId> {
        self.directory_of(directory).ok().map(|index| self.directories[index].parent)
    }

    /// Returns the type of an inode.
    pub fn file_type(&self, id: InodeId) -> FileType {
        self.inodes[id.index()].file_type()
    }

    /// Reports whether an inode is a whiteout of overlayfs.
    pub fn is_whiteout(&self, id: InodeId) -> bool {
        let inode = &self.inodes[id.index()];
        inode.file_type() == FileType::CharDevice && matches!(inode.content, Content::Device(0))
    }

    /// Returns the target of a symbolic link. The image must be open for reading.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::LinkText`] if the inode is not a symbolic link.
    pub fn target(&mut self, id: InodeId) -> Result<Vec<u8>, Error> {
        if self.file_type(id) != FileType::Symlink {
            return Err(Error::LinkText);
        }
        let mut target = Vec::new();
        self.saved(id)?.read_to_end(&mut target).context("reading a symbolic link")?;
        Ok(target)
    }

    /// Returns a reader for a file or symbolic link without holes, whose content is in the image and the
    /// spill. Works even if the inode no longer has a name. The image must be open for reading.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Content`] if the inode has holes or no content.
    pub(crate) fn saved(&mut self, id: InodeId) -> Result<Saved, Error> {
        let Inode { size, content, .. } = self.inodes[id.index()];
        let Content::Blocks { first, tail, tail_at } = content else { return Err(Error::Content) };
        let image = self.blocks.file()?.try_clone().context("opening the image")?;
        let spill = self.spill.file()?.try_clone().context("opening the spill file")?;
        Ok(Saved { image, spill, first, whole: size - u64::from(tail), size, tail_at, at: 0 })
    }

    /// Returns the entries of a directory.
    pub fn entries(&self, directory: InodeId) -> Vec<(Vec<u8>, InodeId)> {
        let entries = self.directory_of(directory).ok().map(|index| &self.directories[index].entries);
        entries.into_iter().flatten().map(|(name, id)| (name.to_vec(), *id)).collect()
    }

    /// Returns the size of a file, bytes.
    pub fn size(&self, id: InodeId) -> u64 {
        self.inodes[id.index()].size
    }

    /// Decides where the partial block after `first` goes: after its inode, or into a block of its own.
    pub(super) fn store_tail(&mut self, first: u32) -> Result<Content, Error> {
        let tail = self.blocks.tail();
        match u16::try_from(tail.len()) {
            Ok(len) if len > 0 && tail.len() <= MAX_TAIL => {
                let tail_at = self.spill.append(tail)?;
                self.blocks.drop_tail();
                Ok(Content::Blocks { first, tail: len, tail_at })
            }
            _ => {
                self.blocks.close()?;
                Ok(Content::Blocks { first, tail: 0, tail_at: self.spill.len() })
            }
        }
    }

    /// Adds a new inode to the tree.
    pub(super) fn add(&mut self, parent: InodeId, name: Box<[u8]>, inode: Inode) -> Result<InodeId, Error> {
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| Error::TooManyEntries)?);
        self.inodes.push(inode);
        self.name(parent, name, id)?;
        Ok(id)
    }

    fn name(&mut self, parent: InodeId, name: Box<[u8]>, id: InodeId) -> Result<(), Error> {
        self.count_memory(ENTRY + name.len())?;
        let index = self.directory_of(parent)?;
        self.directories[index].entries.insert(name, id);
        Ok(())
    }

    fn new_name(&self, parent: InodeId, name: &[u8]) -> Result<Box<[u8]>, Error> {
        let index = self.directory_of(parent)?;
        let is_dot = name == b"." || name == b"..";
        if name.is_empty() || is_dot || name.len() > NAME_MAX || name.contains(&b'/') || name.contains(&0) {
            return Err(Error::Name);
        }
        if self.directories[index].entries.contains_key(name) {
            return Err(Error::Exists);
        }
        Ok(name.into())
    }

    fn directory_of(&self, id: InodeId) -> Result<usize, Error> {
        match self.inodes.get(id.index()) {
            Some(Inode { content: Content::Directory(index), links: 1.., .. }) => Ok(*index as usize),
            _ => Err(Error::Parent),
        }
    }

    fn inode(&mut self, file_type: FileType, metadata: &Metadata) -> Result<Inode, Error> {
        let (xattrs, grown) = self.xattrs.intern(&metadata.xattrs)?;
        self.count_memory(grown)?;
        let mut inode = Inode {
            mtime: metadata.mtime,
            size: 0,
            content: Content::None,
            uid: metadata.uid,
            gid: metadata.gid,
            links: 1,
            xattrs,
            slot: 0,
            mode: 0,
        };
        inode.set_mode(file_type, metadata.mode);
        Ok(inode)
    }

    /// Counts memory that is kept until the image is finished.
    ///
    /// # Errors
    /// [`Error::Memory`], if the limit is exceeded.
    pub(crate) fn count_memory(&mut self, bytes: usize) -> Result<(), Error> {
        self.memory_used = self.memory_used.saturating_add(bytes);
        if self.memory_used > self.options.max_memory {
            return Err(Error::Memory { limit: self.options.max_memory as u64 });
        }
        Ok(())
    }
}
