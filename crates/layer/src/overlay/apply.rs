//! Writes the members of one tar as a tree.
//!
//! Members can come in any order: a whiteout before or after its replacement, a directory after its entries.
//! A later member replaces an earlier one of the same name, regardless of type. Directories get their
//! metadata last, in [`settle`](super::settle), because creating entries changes their time.

mod clear;
mod files;

use std::io::{self, BufRead};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::{mem, thread};

use super::super::applied::{Applied, Directory, LowerLink};
use super::super::apply::{Failure, Sink, members};
use super::super::cores::Cores;
use super::super::error::{Context, Error, Fault};
use super::super::metadata::Metadata;
use super::super::path::{self, escape};
use super::super::path_set::PathSet;
use super::super::space::Space;
use super::super::tar::{Reader, Record, Region};
use super::attributes::{Rights, Writer};
use super::contents::Contents;
use super::open_dir::OpenDir;
use super::replaced::{Replaced, ReplacedFiles};
use super::tree::{Lookup, Tree, is_taken};
use larder_model::seal::Lost;
use larder_sys::{Dir, FileType};

/// Size of attributes that fit in the inode on ext4 with 256-byte inodes, bytes; larger ones take a block.
const XATTRS_IN_INODE: usize = 64;

/// Maximum length of a symbolic link target that ext4 stores in the inode, bytes.
const LINK_IN_INODE: usize = 59;

/// The destination of a layer, with the resources and privileges for writing it.
#[derive(Debug)]
pub struct Target<'a> {
    /// The empty directory that becomes the layer's tree.
    pub diff: Dir,
    /// An empty directory on the same file system, for content that a later member replaces.
    pub replaced: &'a Dir,
    /// The account from which space is reserved.
    pub space: &'a dyn Space,
    /// The privileges of this process.
    pub rights: Rights,
    /// The cores of this process. If some are idle, a second thread writes contents.
    pub cores: &'a Cores,
    /// Counter of content bytes written.
    pub written: &'a AtomicU64,
    /// `true` if replaced content is kept for the tar-split file.
    pub keep_replaced: bool,
}

/// Writes every member of `reader`. Also returns the replaced contents in order.
///
/// # Errors
/// [`Failure`] names the first member that fails.
pub fn apply<B: BufRead, R: Record>(
    reader: &mut Reader<B, R>,
    target: Target<'_>,
) -> Result<(Applied, Vec<Replaced>), Failure> {
    let Target { diff, replaced, space, rights, cores, written, keep_replaced } = target;
    thread::scope(|scope| {
        let mut sink = Overlay {
            tree: Tree::new(diff, space)?,
            rights,
            cores,
            written,
            contents: if cores.is_multicore() { Contents::start(scope, rights, written) } else { None },
            lost: Vec::new(),
            counted: 0,
            without_content: PathSet::default(),
            replaced_files: ReplacedFiles { dir: replaced, keep: keep_replaced, replaced: Vec::new() },
        };
        let entries = members(reader, &mut sink);
        // Pending content belongs to members before the one that failed, so its error takes precedence.
        sink.wait()?;
        let (entries, lower_links) = (entries?, mem::take(&mut sink.tree.lower_links));
        let (directories, lost) = (sink.tree.finish()?, sink.lost);
        Ok((Applied { directories, lower_links, entries, lost }, sink.replaced_files.replaced))
    })
}

/// The destination of a member.
pub(super) struct Destination {
    /// The directory of the member.
    parent: Rc<OpenDir>,
    /// Path of the member, with symbolic links resolved.
    at: Vec<u8>,
}

impl Destination {
    fn name(&self) -> &[u8] {
        path::split(&self.at).1
    }
}

struct Overlay<'a> {
    tree: Tree<'a>,
    rights: Rights,
    cores: &'a Cores,
    written: &'a AtomicU64,
    contents: Option<Contents>,
    lost: Vec<Lost>,
    /// Number of losses whose memory is counted.
    counted: usize,
    /// Paths whose content the tar-split file does not refer to: hard links, and files whose bytes it
    /// contains.
    without_content: PathSet,
    replaced_files: ReplacedFiles<'a>,
}

impl Sink for Overlay<'_> {
    type Destination = Destination;

    fn root(&mut self, metadata: Metadata) -> Result<(), Error> {
        self.tree.directories.entry(Vec::new()).or_default().metadata = Some(metadata);
        Ok(())
    }

    fn destination(&mut self, clean: &[u8]) -> Result<Destination, Error> {
        let parent = self.tree.parent(clean)?;
        let at = path::join(&parent.path, path::split(clean).1);
        Ok(Destination { parent, at })
    }

    fn file<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Destination,
        size: u64,
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        self.regular(reader, destination, size, metadata)
    }

    fn sparse<B: BufRead, R: Record>(
        &mut self,
        reader: &mut Reader<B, R>,
        destination: &Destination,
        size: u64,
        _: &[Region],
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        self.with_holes(reader, destination, size, metadata)
    }

    fn directory(&mut self, destination: &Destination, metadata: Metadata) -> Result<(), Error> {
        let Destination { parent, at } = destination;
        self.tree.count_memory(metadata.xattr_bytes(), at)?;
        if let Some(directory) = self.tree.directories.get_mut(at) {
            directory.metadata = Some(metadata);
            return Ok(());
        }
        let mut recreated = false;
        match self.tree.make_dir(parent, at) {
            Err(Error::Io { source, .. }) if is_taken(&source) => {
                recreated = parent.dir.stat(destination.name()).context("examining", at)?.is_whiteout();
                self.clear(destination)?;
                self.tree.make_dir(parent, at)?;
            }
            other => drop(other?),
        }
        self.tree.lower_links.remove(at);
        self.tree
            .record_directory(at.clone(), Directory { metadata: Some(metadata), opaque: false, recreated })
    }

    fn symlink(
        &mut self,
        destination: &Destination,
        target: &[u8],
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let Destination { parent, at } = destination;
        let block = self.tree.file_system().block;
        let text_room = if target.len() > LINK_IN_INODE { block } else { 0 };
        let room = text_room + self.xattr_room(metadata);
        self.tree.reserve(room, at)?;
        self.create(destination, |dir, name| dir.symlink(target, name))?;
        self.writer().named(&parent.dir, destination.name(), at, FileType::Symlink, metadata)?;
        self.measure_name(destination, room)
    }

    fn node(
        &mut self,
        destination: &Destination,
        file_type: FileType,
        device: (u32, u32),
        metadata: &Metadata,
    ) -> Result<(), Error> {
        let Destination { parent, at } = destination;
        let room = self.xattr_room(metadata);
        self.tree.reserve(room, at)?;
        let mode = metadata.mode & 0o777;
        let made = self.create(destination, |dir, name| dir.make_node(name, file_type, mode, device));
        match made {
            Err(Error::Io { source, .. }) if self.writer().can_record_loss(&source) => {
                let kind = if file_type == FileType::BlockDevice { 'b' } else { 'c' };
                self.writer().record_loss(at, format!("device {kind} {}:{}", device.0, device.1));
                Ok(())
            }
            other => {
                other?;
                self.writer().named(&parent.dir, destination.name(), at, file_type, metadata)?;
                self.measure_name(destination, room)
            }
        }
    }

    /// Creates another name for a file of this layer. For a file of a lower layer, records the link for
    /// settling.
    fn hard_link(
        &mut self,
        destination: &Destination,
        target: &[u8],
        metadata: Metadata,
    ) -> Result<(), Error> {
        let hostile = |fault| Error::hostile(&destination.at, fault);
        let Destination { parent, at } = destination;
        let (target_parent, target_name) = path::split(target);
        let source = match self.tree.find(target_parent, at)? {
            Lookup::Missing(resolved) => {
                return self.lower_link(destination, path::join(&resolved, target_name), metadata);
            }
            Lookup::Found(source) => source,
        };
        self.wait()?;
        let target_at = path::join(&source.path, target_name);
        let stat = match source.dir.try_stat(target_name).context("examining", &target_at)? {
            Some(stat) if !stat.is_whiteout() => stat,
            _ => {
                let target = match self.tree.lower_links.get(&target_at) {
                    Some(link) => link.target.clone(),
                    None => target_at,
                };
                return self.lower_link(destination, target, metadata);
            }
        };
        if stat.is_dir() {
            return Err(hostile(Fault::LinkToDirectory(escape(&target_at))));
        }
        // Removing the existing entry would also remove the target of the link.
        if target_at.strip_prefix(at.as_slice()).is_some_and(|below| below.starts_with(b"/")) {
            return Err(hostile(Fault::LinkMissing(escape(&target_at))));
        }
        // A link to its own name stays as it is; replacing it would lose the file.
        if *at != target_at {
            self.create(destination, |dir, name| source.dir.link(target_name, dir, name))?;
            self.without_content.insert(at);
        }
        let name = destination.name();
        let Overlay { tree, rights, lost, .. } = self;
        let mut writer = Writer { rights: *rights, lost };
        tree.attributes(
            metadata.xattr_bytes(),
            at,
            || parent.dir.stat(name),
            || writer.named(&parent.dir, name, at, stat.file_type, &metadata),
        )
    }

    fn opaque(&mut self, clean: &[u8]) -> Result<(), Error> {
        let parent = self.tree.parent(clean)?;
        self.tree.directories.entry(parent.path.clone()).or_default().opaque = true;
        Ok(())
    }

    /// Hides a lower name. If this layer has an entry of that name, it already hides the lower one. A
    /// directory must also hide the entries of the lower directory.
    fn whiteout(&mut self, clean: &[u8], hidden: &[u8]) -> Result<(), Error> {
        let parent = self.tree.parent(clean)?;
        let at = path::join(&parent.path, hidden);
        match parent.dir.try_stat(hidden).context("examining", &at)? {
            Some(stat) if stat.is_dir() => {
                self.tree.directories.entry(at).or_default().recreated = true;
                Ok(())
            }
            Some(_) => Ok(()),
            None if self.tree.lower_links.contains_key(&at) => Ok(()),
            None => {
                self.tree.watch(&parent, &at)?;
                parent.dir.make_whiteout(hidden).context("creating the whiteout", &at)?;
                self.tree.name_created(&at)
            }
        }
    }

    fn done(&mut self) -> Result<(), Error> {
        for lost in &self.lost[self.counted..] {
            self.tree.count_memory(lost.path.len() + lost.what.len(), lost.path.as_bytes())?;
        }
        self.counted = self.lost.len();
        Ok(())
    }
}

impl Overlay<'_> {
    fn lower_link(
        &mut self,
        destination: &Destination,
        target: Vec<u8>,
        metadata: Metadata,
    ) -> Result<(), Error> {
        let Destination { parent, at } = destination;
        let there = parent.dir.try_stat(destination.name()).context("examining", at)?;
        if there.is_some_and(|stat| !stat.is_whiteout()) {
            self.clear(destination)?;
        }
        self.tree.count_memory(at.len() + target.len() + metadata.xattr_bytes(), at)?;
        self.tree.lower_links.insert(at.clone(), LowerLink { target, metadata });
        Ok(())
    }

    /// Creates a new name and removes an existing entry first. It tries before it checks, because most names
    /// are new.
    fn create<T>(
        &mut self,
        destination: &Destination,
        make: impl Fn(&Dir, &[u8]) -> io::Result<T>,
    ) -> Result<T, Error> {
        let Destination { parent, at } = destination;
        self.tree.watch(parent, at)?;
        if !self.tree.lower_links.is_empty() {
            self.tree.lower_links.remove(at);
        }
        let made = match make(&parent.dir, destination.name()) {
            Err(e) if is_taken(&e) => {
                self.clear(destination)?;
                self.tree.watch(parent, at)?;
                make(&parent.dir, destination.name())
            }
            other => other,
        };
        let made = made.context("creating", at)?;
        self.tree.name_created(at)?;
        Ok(made)
    }

    /// Determines the allocated size of a symbolic link or device node with attributes. xfs stores up to
    /// about 300 bytes in the inode, tmpfs all of them.
    fn measure_name(&mut self, destination: &Destination, reserved: u64) -> Result<(), Error> {
        if reserved == 0 {
            return Ok(());
        }
        let Destination { parent, at } = destination;
        let allocated = parent.dir.stat(destination.name()).context("examining", at)?.allocated;
        self.correct(at, reserved, allocated)
    }

    fn correct(&mut self, at: &[u8], reserved: u64, allocated: u64) -> Result<(), Error> {
        match allocated.checked_sub(reserved) {
            Some(more) => self.tree.reserve(more, at),
            None => {
                self.tree.release(reserved - allocated);
                Ok(())
            }
        }
    }

    fn xattr_room(&self, metadata: &Metadata) -> u64 {
        let bytes = metadata.xattr_bytes();
        if bytes > XATTRS_IN_INODE { self.tree.file_system().round_up(bytes as u64) } else { 0 }
    }

    fn writer(&mut self) -> Writer<'_> {
        Writer { rights: self.rights, lost: &mut self.lost }
    }
}
