//! The tree that a tar describes, planned in memory.
//!
//! The rules by which members become a tree are implemented a second time on purpose. Differences between the
//! two implementations are found here. Two parts are shared, and must not differ anywhere: the resolution of
//! paths ([`larder_layer::resolve`]), and the plan of settling ([`larder_layer::settle`]).

use std::collections::BTreeMap;
use std::convert::Infallible;

use larder_layer::applied::{Directory, LowerLink};
use larder_layer::error::Fault;
use larder_layer::metadata::Metadata;
use larder_layer::path::{self, Meaning};
use larder_layer::resolve::{self, Directory as Resolved, Entry, ResolveError, resolve_directory};
use larder_model::digest::Digest;

/// A file that is not a directory, under all its names.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) kind: InodeKind,
    pub(super) metadata: Metadata,
}

#[derive(Clone, Debug)]
pub(super) enum InodeKind {
    File {
        size: u64,
        content: Content,
    },
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    /// A copy of a file of a lower layer, by its path there.
    CopiedUp(Vec<u8>),
}

/// Source of a file's expected content.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// The tar was rebuilt from the file at this path.
    Read(Vec<u8>),
    /// The tar-split file contains it: regions (offset, length), the sha256 of their bytes, and zeros between
    /// them.
    Held { regions: Vec<(u64, u64)>, digest: Digest },
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Directory(Directory),
    Inode(usize),
    Whiteout,
}

/// A tree that is planned in memory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: BTreeMap<Vec<u8>, Node>,
    pub(super) inodes: Vec<Inode>,
    pub(super) lower_links: BTreeMap<Vec<u8>, LowerLink>,
}

enum Walked {
    Here(Vec<u8>),
    Missing(Vec<u8>),
}

impl Tree {
    pub(super) fn new() -> Self {
        Tree {
            nodes: BTreeMap::from([(Vec::new(), Node::Directory(Directory::default()))]),
            ..Tree::default()
        }
    }

    /// Returns the path of a member; `None` if the member creates no name of its own.
    pub(super) fn place(&mut self, clean: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let (parent, name) = path::split(clean);
        match path::meaning(clean)? {
            Meaning::Aufs => Ok(None),
            Meaning::Opaque => {
                let parent = self.make_parents(parent)?;
                self.directory_mut(&parent).opaque = true;
                Ok(None)
            }
            Meaning::Whiteout(hidden) => {
                let at = path::join(&self.make_parents(parent)?, hidden);
                match self.nodes.get_mut(&at) {
                    Some(Node::Directory(directory)) => directory.recreated = true,
                    Some(_) => {}
                    None if self.lower_links.contains_key(&at) => {}
                    None => {
                        self.nodes.insert(at, Node::Whiteout);
                    }
                }
                Ok(None)
            }
            Meaning::Plain if clean.is_empty() => Ok(Some(Vec::new())),
            Meaning::Plain => Ok(Some(path::join(&self.make_parents(parent)?, name))),
        }
    }

    pub(super) fn add_directory(&mut self, at: Vec<u8>, metadata: Metadata) {
        if let Some(Node::Directory(directory)) = self.nodes.get_mut(&at) {
            directory.metadata = Some(metadata);
            return;
        }
        let recreated = matches!(self.nodes.get(&at), Some(Node::Whiteout));
        self.clear(&at);
        self.nodes
            .insert(at, Node::Directory(Directory { metadata: Some(metadata), opaque: false, recreated }));
    }

    pub(super) fn add_inode(&mut self, at: Vec<u8>, kind: InodeKind, metadata: Metadata) {
        self.clear(&at);
        self.inodes.push(Inode { kind, metadata });
        self.nodes.insert(at, Node::Inode(self.inodes.len() - 1));
    }

    pub(super) fn add_link(&mut self, at: Vec<u8>, target: &[u8], metadata: Metadata) -> Result<(), Fault> {
        let (parent, name) = path::split(target);
        let target_at = match self.walk(parent, false)? {
            Walked::Missing(resolved) => {
                self.clear(&at);
                self.lower_links.insert(at, LowerLink { target: path::join(&resolved, name), metadata });
                return Ok(());
            }
            Walked::Here(parent) => path::join(&parent, name),
        };
        match self.nodes.get(&target_at) {
            Some(Node::Inode(inode)) => {
                let inode = *inode;
                self.inodes[inode].metadata = link_metadata(&self.inodes[inode], metadata);
                if at != target_at {
                    self.clear(&at);
                    self.nodes.insert(at, Node::Inode(inode));
                }
                Ok(())
            }
            Some(Node::Directory(_)) => Err(Fault::LinkToDirectory(path::escape(&target_at))),
            Some(Node::Whiteout) | None => {
                let target = self.lower_links.get(&target_at).map_or(target_at, |link| link.target.clone());
                self.clear(&at);
                self.lower_links.insert(at, LowerLink { target, metadata });
                Ok(())
            }
        }
    }

    /// Returns only the directories, for settling.
    pub(super) fn directories(&self) -> BTreeMap<Vec<u8>, Directory> {
        let directories = self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Directory(directory) => Some((path.clone(), directory.clone())),
            _ => None,
        });
        directories.collect()
    }

    /// Creates the parent directories up to `directory`, following symbolic links, and returns its resolved
    /// path.
    pub(super) fn make_parents(&mut self, directory: &[u8]) -> Result<Vec<u8>, Fault> {
        match self.walk(directory, true)? {
            Walked::Here(path) => Ok(path),
            Walked::Missing(path) => Err(Fault::ParentKind(path::escape(&path))),
        }
    }

    pub(super) fn directory_mut(&mut self, at: &[u8]) -> &mut Directory {
        let node = self.nodes.entry(at.to_vec()).or_insert(Node::Directory(Directory::default()));
        if !matches!(node, Node::Directory(_)) {
            *node = Node::Directory(Directory::default());
        }
        match node {
            Node::Directory(directory) => directory,
            _ => unreachable!("the node was just made a directory"),
        }
    }

    fn clear(&mut self, at: &[u8]) {
        if matches!(self.nodes.get(at), Some(Node::Directory(_))) {
            path::remove_tree(&mut self.nodes, at);
            path::remove_tree(&mut self.lower_links, at);
        } else {
            self.nodes.remove(at);
            self.lower_links.remove(at);
        }
    }

    /// Resolves `directory` by components, as if the layer were the root of the file system.
    fn walk(&mut self, directory: &[u8], make: bool) -> Result<Walked, Fault> {
        match resolve_directory(&mut Walk { tree: self, make }, directory) {
            Ok(Resolved::Found { path, .. }) => Ok(Walked::Here(path)),
            Ok(Resolved::Missing(path)) => Ok(Walked::Missing(path)),
            Err(ResolveError::Path(fault)) => Err(fault),
            Err(ResolveError::Tree(never)) => match never {},
        }
    }
}

/// A tree whose paths are resolved. With `make`, missing directories are created.
struct Walk<'t> {
    tree: &'t mut Tree,
    make: bool,
}

impl resolve::Tree for Walk<'_> {
    type Dir = ();
    type Error = Infallible;

    fn directory(&mut self, _path: &[u8]) -> Result<(), Infallible> {
        Ok(())
    }

    fn entry(&mut self, _dir: &(), _name: &[u8], at: &[u8]) -> Result<Entry<()>, Infallible> {
        Ok(match self.tree.nodes.get(at) {
            Some(Node::Directory(_)) => Entry::Directory(()),
            Some(Node::Inode(inode)) => match &self.tree.inodes[*inode].kind {
                InodeKind::Symlink(target) => Entry::Symlink(target.clone()),
                _ => Entry::Other,
            },
            // A file of a lower layer is not a directory either.
            _ if self.tree.lower_links.contains_key(at) => Entry::Other,
            other if self.make => {
                let directory = Directory { recreated: other.is_some(), ..Directory::default() };
                self.tree.nodes.insert(at.to_vec(), Node::Directory(directory));
                Entry::Directory(())
            }
            _ => Entry::Missing,
        })
    }
}

/// Returns the metadata of an inode after a link member changed it. Attributes are added; everything else is
/// replaced.
pub(super) fn link_metadata(inode: &Inode, link: Metadata) -> Metadata {
    let mut xattrs: BTreeMap<Vec<u8>, Vec<u8>> = inode.metadata.xattrs.iter().cloned().collect();
    // A change of owner removes the capabilities of a file (chown(2)).
    if (inode.metadata.uid, inode.metadata.gid) != (link.uid, link.gid) {
        xattrs.remove(&b"security.capability"[..]);
    }
    xattrs.extend(link.xattrs);
    // Symbolic links have no mode to set.
    let mode = if matches!(inode.kind, InodeKind::Symlink(_)) { inode.metadata.mode } else { link.mode };
    Metadata { mode, xattrs: xattrs.into_iter().collect(), ..link }
}
