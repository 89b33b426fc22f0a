//! Comparison of a planned tree with the one on disk, inode by inode.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;

use super::content;
use super::error::{Error, Fault};
use super::tree::{Content, Inode, InodeKind, Node, Tree};
use larder_layer::lower::{LinkTarget, Lower};
use larder_layer::metadata::Metadata;
use larder_layer::path::{self, escape};
use larder_model::chain::ChainId;
use larder_model::seal::Lost;
use larder_sys::dir::forgery;
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, FileType, Stat, Timestamp, xattr};

/// Expected state of a tree on disk.
#[derive(Debug)]
pub(super) struct Comparison<'a> {
    pub(super) layer: &'a ChainId,
    pub(super) tree: &'a Tree,
    pub(super) directories: &'a BTreeMap<Vec<u8>, Metadata>,
    pub(super) lower: &'a Lower,
    pub(super) lost: HashSet<(&'a str, &'a str)>,
}

/// State of a comparison during the walk.
struct Walk<'a, 'b> {
    comparison: &'b Comparison<'a>,
    seen: HashSet<Vec<u8>>,
    /// The first file on disk that was found for each planned inode, and its path.
    inodes: HashMap<usize, ((u64, u64), Vec<u8>)>,
    /// The first planned inode that was found for each file on disk, and its path.
    files: HashMap<(u64, u64), (usize, Vec<u8>)>,
    names: &'b mut Names,
}

impl Visitor for Walk<'_, '_> {
    type Error = Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let comparison = self.comparison;
        comparison.directory(path, dir)?;
        self.seen.insert(path.to_vec());
        let mut names = dir.names().map_err(|e| comparison.io("listing", path, e))?;
        names.sort();
        let mut directories = Vec::new();
        for name in names {
            let at = path::join(path, &name);
            let stat = dir.stat(&name).map_err(|e| comparison.io("examining", &at, e))?;
            match comparison.tree.nodes.get(&at) {
                None => return Err(comparison.differs(&at, Fault::Unexplained)),
                Some(Node::Whiteout) if stat.is_whiteout() => {}
                Some(Node::Whiteout) => return Err(comparison.wrong_type(&at, "a whiteout", &stat)),
                Some(Node::Directory(_)) if stat.is_dir() => {
                    directories.push(name);
                    continue;
                }
                Some(Node::Directory(_)) => return Err(comparison.wrong_type(&at, "a directory", &stat)),
                Some(Node::Inode(number)) => self.inode(dir, &name, &at, &stat, *number)?,
            }
            self.seen.insert(at);
        }
        directories.reverse();
        Ok(directories)
    }

    fn failed(&mut self, path: &[u8], error: io::Error) -> Error {
        self.comparison.io("walking", path, error)
    }
}

impl Walk<'_, '_> {
    /// Compares a file, and checks that exactly the expected names share its inode.
    fn inode(&mut self, dir: &Dir, name: &[u8], at: &[u8], stat: &Stat, number: usize) -> Result<(), Error> {
        let comparison = self.comparison;
        self.names.add(comparison.layer, at, stat);
        let (identity, first) = self.inodes.entry(number).or_insert_with(|| (stat.identity, at.to_vec()));
        if *identity != stat.identity {
            return Err(comparison.differs(at, Fault::NotLinked(escape(first))));
        }
        let (owner, first) = self.files.entry(stat.identity).or_insert_with(|| (number, at.to_vec()));
        if *owner != number {
            return Err(comparison.differs(at, Fault::Linked(escape(first))));
        }
        if first == at {
            comparison.inode(at, dir, name, stat, &comparison.tree.inodes[number], number)?;
        }
        Ok(())
    }
}

/// The names of files with several names, in all layers. A change set with two chain IDs has its files only
/// once.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<(u64, u64), Links>);

#[derive(Debug)]
struct Links {
    /// Number of names of the inode.
    all: u64,
    /// Number of these names that were found.
    here: u64,
    layer: ChainId,
    at: Vec<u8>,
}

impl Names {
    fn add(&mut self, layer: &ChainId, at: &[u8], stat: &Stat) {
        if stat.links > 1 {
            let first = || Links { all: stat.links, here: 0, layer: layer.clone(), at: at.to_vec() };
            self.0.entry(stat.identity).or_insert_with(first).here += 1;
        }
    }

    /// Checks that every name of every file was found, after all layers were walked.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.0.values().find(|links| links.all != links.here) {
            None => Ok(()),
            Some(links) => {
                let fault = Fault::Names { want: links.here, found: links.all };
                Err(Error::layer(&links.layer, &links.at, fault))
            }
        }
    }
}

/// Returns the properties that an unprivileged build could not preserve, from the loss records of a layer.
pub(super) fn losses(lost: &[Lost]) -> HashSet<(&str, &str)> {
    lost.iter().map(|lost| (lost.path.as_str(), lost.what.as_str())).collect()
}

impl Comparison<'_> {
    /// Walks the whole tree in `diff`.
    pub(super) fn run(&self, diff: Dir, names: &mut Names) -> Result<(), Error> {
        let mut state = Walk {
            comparison: self,
            seen: HashSet::new(),
            inodes: HashMap::new(),
            files: HashMap::new(),
            names,
        };
        walk(diff, &mut state)?;
        let mut names = self.tree.nodes.keys();
        let missing = names.find(|at| !state.seen.contains(*at) && !self.device_lost(at));
        missing.map_or(Ok(()), |at| Err(self.differs(at, Fault::Missing)))
    }

    fn directory(&self, at: &[u8], dir: &Dir) -> Result<(), Error> {
        let Some(want) = self.directories.get(at) else {
            return Err(self.differs(at, Fault::Unexplained));
        };
        let stat = dir.stat_self().map_err(|e| self.io("examining", at, e))?;
        let xattrs = xattr::all(dir).map_err(|e| self.io("reading the attributes of", at, e))?;
        self.metadata(at, want, &stat, xattrs)
    }

    fn inode(
        &self,
        at: &[u8],
        dir: &Dir,
        name: &[u8],
        stat: &Stat,
        inode: &Inode,
        number: usize,
    ) -> Result<(), Error> {
        match &inode.kind {
            InodeKind::File { size, content } => {
                self.is_type(at, FileType::Regular, stat)?;
                if stat.size != *size {
                    return Err(self.differs(at, Fault::Size { want: *size, found: stat.size }));
                }
                self.content(at, dir, name, *size, content, number)?;
            }
            InodeKind::Symlink(want) => {
                self.is_type(at, FileType::Symlink, stat)?;
                let found = dir.read_link(name).map_err(|e| self.io("reading the link", at, e))?;
                if found != *want {
                    let (want, found) = (escape(want), escape(&found));
                    return Err(self.differs(at, Fault::Target { want, found }));
                }
            }
            InodeKind::CharDevice(major, minor) => {
                self.device(at, FileType::CharDevice, (*major, *minor), stat)?
            }
            InodeKind::BlockDevice(major, minor) => {
                self.device(at, FileType::BlockDevice, (*major, *minor), stat)?
            }
            InodeKind::Fifo => self.is_type(at, FileType::Fifo, stat)?,
            InodeKind::CopiedUp(source) => self.copied_up(at, dir, name, stat, source)?,
        }
        let xattrs = xattr::all_at(dir, name).map_err(|e| self.io("reading the attributes of", at, e))?;
        self.metadata(at, &inode.metadata, stat, xattrs)
    }

    fn content(
        &self,
        at: &[u8],
        dir: &Dir,
        name: &[u8],
        size: u64,
        content: &Content,
        number: usize,
    ) -> Result<(), Error> {
        match content {
            // Rebuilding the tar has read this content, if it is still the same file.
            Content::Read(path) => match self.tree.nodes.get(path) {
                Some(Node::Inode(other)) if *other == number => Ok(()),
                _ => Err(self.differs(at, Fault::Content)),
            },
            Content::Held { regions, digest } => {
                let file = dir.open_file(name).map_err(|e| self.io("opening", at, e))?;
                let found = content::hash_regions(&file, size, regions);
                match found.map_err(|e| self.io("reading", at, e))? {
                    Some(found) if found == *digest => Ok(()),
                    _ => Err(self.differs(at, Fault::Content)),
                }
            }
        }
    }

    fn copied_up(&self, at: &[u8], dir: &Dir, name: &[u8], stat: &Stat, source: &[u8]) -> Result<(), Error> {
        let found = self
            .lower
            .link_target(source)
            .map_err(|e| self.io("searching the parent layers for", source, e))?;
        let Some(LinkTarget { path: resolved, dir: lower, stat: original }) = found else {
            return Err(self.differs(at, Fault::Unexplained));
        };
        let original_name = path::split(&resolved).1;
        self.is_type(at, original.file_type, stat)?;
        let same = match original.file_type {
            FileType::Regular => {
                let failed = |e| self.io("opening", at, e);
                let a = dir.open_file(name).map_err(failed)?;
                let b = lower.open_file(original_name).map_err(failed)?;
                stat.size == original.size && content::same(a, b).map_err(|e| self.io("reading", at, e))?
            }
            FileType::Symlink => {
                let failed = |e| self.io("reading", at, e);
                dir.read_link(name).map_err(failed)? == lower.read_link(original_name).map_err(failed)?
            }
            _ => stat.device == original.device,
        };
        if same { Ok(()) } else { Err(self.differs(at, Fault::Content)) }
    }

    fn metadata(
        &self,
        at: &[u8],
        want: &Metadata,
        stat: &Stat,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), Error> {
        let owner = (want.uid, want.gid);
        if owner != (stat.uid, stat.gid) && !self.is_lost(at, &format!("owner {}:{}", owner.0, owner.1)) {
            return Err(self.differs(at, Fault::Owner { want: owner, found: (stat.uid, stat.gid) }));
        }
        if want.mode != stat.mode && stat.file_type != FileType::Symlink {
            return Err(self.differs(at, Fault::Mode { want: want.mode, found: stat.mode }));
        }
        if want.mtime != stat.mtime && !self.is_lost(at, "mtime") {
            let (want, found) = (seconds(want.mtime), seconds(stat.mtime));
            return Err(self.differs(at, Fault::Time { want, found }));
        }
        let want: BTreeMap<&[u8], &[u8]> =
            want.xattrs.iter().map(|(n, v)| (n.as_slice(), v.as_slice())).collect();
        let found: BTreeMap<&[u8], &[u8]> = xattrs
            .iter()
            // The host's policy sets this label, which can differ between hosts.
            .filter(|(name, _)| name != b"security.selinux")
            .map(|(n, v)| (n.as_slice(), v.as_slice()))
            .collect();
        for name in want.keys().chain(found.keys()) {
            let lost = || !found.contains_key(name) && self.is_lost(at, &format!("xattr {}", escape(name)));
            if want.get(name) != found.get(name) && !lost() {
                return Err(self.differs(at, Fault::Attribute(escape(name))));
            }
        }
        Ok(())
    }

    fn device(&self, at: &[u8], file_type: FileType, want: (u32, u32), stat: &Stat) -> Result<(), Error> {
        self.is_type(at, file_type, stat)?;
        if want != stat.device {
            return Err(self.differs(at, Fault::Device { want, found: stat.device }));
        }
        Ok(())
    }

    fn is_type(&self, at: &[u8], want: FileType, stat: &Stat) -> Result<(), Error> {
        if stat.file_type == want && !stat.is_whiteout() {
            return Ok(());
        }
        Err(self.wrong_type(at, type_name(want), stat))
    }

    fn wrong_type(&self, at: &[u8], want: &'static str, stat: &Stat) -> Error {
        let found = if stat.is_whiteout() { "a whiteout" } else { type_name(stat.file_type) };
        self.differs(at, Fault::Type { want, found })
    }

    fn is_lost(&self, at: &[u8], what: &str) -> bool {
        !self.lost.is_empty() && self.lost.contains(&(escape(at).as_str(), what))
    }

    fn device_lost(&self, at: &[u8]) -> bool {
        let escaped = escape(at);
        self.lost.iter().any(|(path, what)| *path == escaped && what.starts_with("device "))
    }

    fn differs(&self, at: &[u8], fault: Fault) -> Error {
        Error::layer(self.layer, at, fault)
    }

    fn io(&self, doing: &'static str, at: &[u8], source: io::Error) -> Error {
        if let Some(what) = forgery(&source) {
            return self.differs(at, Fault::Kind(what));
        }
        Error::io(doing, format!("{:?} of layer {}", escape(at), self.layer), source)
    }
}

fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::CharDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
    }
}

fn seconds(time: Timestamp) -> String {
    format!("{}.{:09}", time.sec, time.nsec)
}
