//! The directories of a layer that is being written. Finds the parent of a member, and creates the parents
//! that a tar implies, without ever leaving the layer.
//!
//! A parent is first opened with one openat2(2) that rejects every symbolic link. If that fails, the path is
//! walked by components. The walk treats the layer as the root of the file system, follows links inside it
//! (an honest layer can contain `var/run -> /run`), and creates missing directories. Where both methods
//! apply, they give the same result.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::rc::Rc;

use super::super::applied::{Directory, LowerLink};
use super::super::error::{Context, Error, Fault, named};
use super::super::path::{self, escape};
use super::super::resolve::{self, Directory as Resolved, Entry, ResolveError, resolve_directory};
use super::super::space::Space;
use super::STAGING_MODE;
use super::growth::Growth;
use super::open_dir::OpenDir;
use larder_sys::space::FileSystem;
use larder_sys::{Dir, FileType, Stat};

/// Number of directories kept open. Most tars are in depth-first order, so these are the parents of recent
/// members.
const MAX_OPEN: usize = 48;

/// Maximum memory for paths and attributes of directories and of links to lower files, bytes per layer. A
/// million directories take about 100 MB.
const MAX_MEMORY: usize = 128 << 20;

/// Memory of an entry in addition to its bytes: map node, lengths, metadata.
const ENTRY: usize = 320;

/// The directories of a layer that is being written.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    root: Rc<OpenDir>,
    cache: VecDeque<Rc<OpenDir>>,
    pub(super) directories: BTreeMap<Vec<u8>, Directory>,
    /// Links to files of lower layers, which do not exist on disk yet.
    pub(super) lower_links: BTreeMap<Vec<u8>, LowerLink>,
    space: &'a dyn Space,
    file_system: FileSystem,
    growth: Growth<'a>,
    memory_used: usize,
}

/// The result of a path lookup in the layer.
#[derive(Debug)]
pub(super) enum Lookup {
    /// The whole path exists.
    Found(Rc<OpenDir>),
    /// Part of the path is missing. The value is the clean path, with existing links resolved.
    Missing(Vec<u8>),
}

impl<'a> Tree<'a> {
    /// Wraps the empty directory `root`. Reserves the space that new names may cost a directory.
    pub(super) fn new(root: Dir, space: &'a dyn Space) -> Result<Self, Error> {
        let file_system = FileSystem::of(&root).context("examining the file system of", b"")?;
        Ok(Tree {
            root: Rc::new(OpenDir { path: Vec::new(), dir: root }),
            cache: VecDeque::new(),
            directories: BTreeMap::from([(Vec::new(), Directory::default())]),
            lower_links: BTreeMap::new(),
            space,
            file_system,
            growth: Growth::new(space, file_system.block)?,
            memory_used: 0,
        })
    }

    pub(super) fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Ends the space accounting and returns the directories.
    pub(super) fn finish(self) -> Result<BTreeMap<Vec<u8>, Directory>, Error> {
        self.growth.finish()?;
        Ok(self.directories)
    }

    pub(super) fn reserve(&mut self, bytes: u64, path: &[u8]) -> Result<(), Error> {
        let Err(full) = self.space.reserve(bytes) else { return Ok(()) };
        if !self.growth.shorten(path)? {
            return Err(Error::Full { path: named(path), full });
        }
        self.space.reserve(bytes).map_err(|full| Error::Full { path: named(path), full })
    }

    pub(super) fn release(&self, bytes: u64) {
        self.space.release(bytes);
    }

    /// Returns the parent of a member, and creates it if the tar only implies it.
    pub(super) fn parent(&mut self, member: &[u8]) -> Result<Rc<OpenDir>, Error> {
        let (parent, _) = path::split(member);
        if let Some(opened) = self.try_open(parent) {
            return Ok(opened);
        }
        match self.walk(parent, member, true)? {
            Lookup::Found(opened) => Ok(opened),
            Lookup::Missing(at) => Err(Error::hostile(member, Fault::ParentKind(escape(&at)))),
        }
    }

    /// Looks up the directory at a clean path without creating anything.
    pub(super) fn find(&mut self, directory: &[u8], member: &[u8]) -> Result<Lookup, Error> {
        match self.try_open(directory) {
            Some(opened) => Ok(Lookup::Found(opened)),
            None => self.walk(directory, member, false),
        }
    }

    /// Opens the directory at a path that exists and contains no symbolic link.
    pub(super) fn open(&mut self, path: &[u8]) -> Result<Rc<OpenDir>, Error> {
        if let Some(opened) = self.cached(path) {
            return Ok(opened);
        }
        let dir = self.root.dir.open_beneath(path).context("opening", path)?;
        Ok(self.keep_open(path.to_vec(), dir))
    }

    /// Records a directory that the caller created.
    pub(super) fn record_directory(&mut self, path: Vec<u8>, directory: Directory) -> Result<(), Error> {
        self.count_memory(path.len(), &path)?;
        self.directories.insert(path, directory);
        Ok(())
    }

    /// Counts memory that is kept until the layer is settled: a few kilobytes of tar can expand to gigabytes
    /// of paths.
    pub(super) fn count_memory(&mut self, bytes: usize, member: &[u8]) -> Result<(), Error> {
        self.memory_used = self.memory_used.saturating_add(bytes + ENTRY);
        if self.memory_used > MAX_MEMORY {
            return Err(Error::hostile(member, Fault::TooMuchMemory { limit: MAX_MEMORY as u64 }));
        }
        Ok(())
    }

    /// Discards all records of a directory and of everything below it.
    pub(super) fn forget(&mut self, path: &[u8]) {
        self.cache.clear();
        path::remove_tree(&mut self.directories, path);
    }

    /// Must be called before the name `path` is created in `parent`, to account for the growth of that
    /// directory.
    pub(super) fn watch(&mut self, parent: &Rc<OpenDir>, path: &[u8]) -> Result<(), Error> {
        self.growth.watch(parent, path)
    }

    /// Must be called after the name was created.
    pub(super) fn name_created(&mut self, path: &[u8]) -> Result<(), Error> {
        self.growth.name_created(path)
    }

    /// Must be called before a name is removed, because its directory may have unaccounted growth.
    pub(super) fn end_growth_run(&mut self, path: &[u8]) -> Result<(), Error> {
        self.growth.end_run(path)
    }

    /// Runs `write`, which sets `bytes` of attributes on an inode, with space reserved for the block that
    /// they may take.
    pub(super) fn attributes(
        &mut self,
        bytes: usize,
        path: &[u8],
        stat: impl Fn() -> io::Result<Stat>,
        write: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        if bytes == 0 {
            return write();
        }
        let room = self.file_system.round_up(bytes as u64 + 64);
        self.reserve(room, path)?;
        let before = stat().context("examining", path)?.allocated;
        write()?;
        let grown = stat().context("examining", path)?.allocated.saturating_sub(before);
        self.release(room.saturating_sub(grown));
        Ok(())
    }

    /// Returns a directory that is already open.
    fn cached(&mut self, path: &[u8]) -> Option<Rc<OpenDir>> {
        if path.is_empty() {
            return Some(Rc::clone(&self.root));
        }
        let at = self.cache.iter().position(|opened| opened.path == path)?;
        self.cache.swap(at, at / 2);
        Some(Rc::clone(&self.cache[at / 2]))
    }

    fn try_open(&mut self, path: &[u8]) -> Option<Rc<OpenDir>> {
        if let Some(opened) = self.cached(path) {
            return Some(opened);
        }
        let dir = self.root.dir.open_beneath(path).ok()?;
        Some(self.keep_open(path.to_vec(), dir))
    }

    fn keep_open(&mut self, path: Vec<u8>, dir: Dir) -> Rc<OpenDir> {
        let opened = Rc::new(OpenDir { path, dir });
        self.cache.truncate(MAX_OPEN - 1);
        self.cache.push_front(Rc::clone(&opened));
        opened
    }

    /// Resolves `directory` by components, as if the layer were the root of the file system.
    fn walk(&mut self, directory: &[u8], member: &[u8], make: bool) -> Result<Lookup, Error> {
        match resolve_directory(&mut Walk { tree: self, make }, directory) {
            Ok(Resolved::Found { dir, .. }) => Ok(Lookup::Found(dir)),
            Ok(Resolved::Missing(path)) => Ok(Lookup::Missing(path)),
            Err(ResolveError::Path(fault)) => Err(Error::hostile(member, fault)),
            Err(ResolveError::Tree(error)) => Err(error),
        }
    }

    /// Creates a directory that the tar does not contain, replacing a whiteout of this layer.
    fn imply(&mut self, parent: &Rc<OpenDir>, at: Vec<u8>, whiteout: bool) -> Result<Rc<OpenDir>, Error> {
        if whiteout {
            parent.dir.unlink(path::split(&at).1).context("replacing", &at)?;
        }
        let opened = self.make_dir(parent, &at)?;
        self.record_directory(at, Directory { recreated: whiteout, ..Directory::default() })?;
        Ok(opened)
    }

    /// Creates and opens a directory after reserving space for it.
    pub(super) fn make_dir(&mut self, parent: &Rc<OpenDir>, at: &[u8]) -> Result<Rc<OpenDir>, Error> {
        let (block, (_, name)) = (self.file_system.block, path::split(at));
        self.reserve(block, at)?;
        self.watch(parent, at)?;
        if let Err(source) = parent.dir.make_dir(name, STAGING_MODE) {
            self.release(block);
            return Err(Error::io("creating", at, source));
        }
        self.name_created(at)?;
        let dir = parent.dir.open_dir(name).context("opening", at)?;
        // xfs and tmpfs store small directories in the inode.
        let allocated = dir.stat_self().context("examining", at)?.allocated;
        self.release(block.saturating_sub(allocated));
        Ok(self.keep_open(at.to_vec(), dir))
    }
}

/// A tree whose paths are resolved. With `make`, missing directories are created.
struct Walk<'t, 'a> {
    tree: &'t mut Tree<'a>,
    make: bool,
}

impl resolve::Tree for Walk<'_, '_> {
    type Dir = Rc<OpenDir>;
    type Error = Error;

    fn directory(&mut self, path: &[u8]) -> Result<Self::Dir, Error> {
        self.tree.open(path)
    }

    fn entry(&mut self, dir: &Self::Dir, name: &[u8], at: &[u8]) -> Result<Entry<Self::Dir>, Error> {
        let stat = dir.dir.try_stat(name).context("examining", at)?;
        Ok(match stat.map(|stat| (stat.file_type, stat.is_whiteout())) {
            Some((FileType::Directory, _)) => Entry::Directory(match self.tree.cached(at) {
                Some(cached) => cached,
                None => {
                    let opened = dir.dir.open_dir(name).context("opening", at)?;
                    self.tree.keep_open(at.to_vec(), opened)
                }
            }),
            Some((FileType::Symlink, _)) => {
                Entry::Symlink(dir.dir.read_link(name).context("reading the link", at)?)
            }
            // A file of a lower layer is not a directory either.
            None | Some((_, true)) if self.tree.lower_links.contains_key(at) => Entry::Other,
            None | Some((_, true)) if self.make => {
                Entry::Directory(self.tree.imply(dir, at.to_vec(), stat.is_some())?)
            }
            None | Some((_, true)) => Entry::Missing,
            Some(_) => Entry::Other,
        })
    }
}

/// Resolves `paths` in the layer at `root`, for tests.
#[cfg(test)]
pub(crate) fn answers(root: Dir, paths: &[Vec<u8>], make: bool) -> Vec<resolve::tests::Answer> {
    use resolve::tests::{Answer, answer};
    let space = super::super::space::NoAccounting;
    let mut tree = Tree::new(root, &space).expect("the root is a directory");
    let mut answers = Vec::new();
    for path in paths {
        let answered = answer(&mut Walk { tree: &mut tree, make }, path);
        // The parent of a member is searched in one call first.
        if path::clean(path).as_ref() == Ok(path)
            && let Ok(Lookup::Found(found)) = tree.find(path, path)
        {
            assert_eq!(Answer::Directory(found.path.clone()), answered, "{}", path.escape_ascii());
        }
        answers.push(answered);
    }
    answers
}

/// Reports whether an error means that the name is taken.
pub(super) fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}
