//! The expected content of an image: a tree in memory, created by the same calls as the image.

use std::collections::{BTreeMap, HashMap};

use larder_layer::erofs::{Error, InodeId, Special, Writer};
use larder_layer::metadata::Metadata;
use larder_layer::tar::Region;
use larder_sys::FileType;

use super::found::{Found, Kind};

/// The data of an inode, by type.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Directory,
    File(Vec<u8>),
    /// The size, and data at offsets.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    Symlink(Vec<u8>),
    Special(Special),
}

struct Inode {
    id: InodeId,
    metadata: Metadata,
    node: Node,
    entries: BTreeMap<Vec<u8>, usize>,
}

/// A tree, and a writer that receives the same calls.
pub(crate) struct Model<'a> {
    writer: Writer<'a>,
    inodes: Vec<Inode>,
}

impl<'a> Model<'a> {
    pub(crate) fn new(writer: Writer<'a>) -> Self {
        let root = Inode {
            id: InodeId::ROOT,
            metadata: Metadata::implied(),
            node: Node::Directory,
            entries: BTreeMap::new(),
        };
        Model { writer, inodes: vec![root] }
    }

    /// Creates an entry. Replaces an entry with the same name.
    pub(crate) fn make(&mut self, parent: usize, name: &[u8], metadata: Metadata, node: Node) -> usize {
        let above = self.inodes[parent].id;
        self.clear(parent, name);
        let id = write(&mut self.writer, above, name, &metadata, &node).unwrap();
        self.inodes.push(Inode { id, metadata, node, entries: BTreeMap::new() });
        let index = self.inodes.len() - 1;
        self.inodes[parent].entries.insert(name.to_vec(), index);
        index
    }

    /// Adds a name to an inode.
    pub(crate) fn link(&mut self, parent: usize, name: &[u8], inode: usize) {
        if self.inodes[parent].entries.get(name) == Some(&inode) {
            return;
        }
        let (above, id) = (self.inodes[parent].id, self.inodes[inode].id);
        self.clear(parent, name);
        self.writer.link(above, name, id).unwrap();
        self.inodes[parent].entries.insert(name.to_vec(), inode);
    }

    /// Removes a name and everything below it.
    pub(crate) fn clear(&mut self, parent: usize, name: &[u8]) {
        let above = self.inodes[parent].id;
        let known = self.inodes[parent].entries.remove(name).map(|index| self.inodes[index].id);
        assert_eq!(self.writer.lookup(above, name), known);
        self.writer.remove(above, name).unwrap();
        assert_eq!(self.writer.lookup(above, name), None);
    }

    /// Removes one of a directory's names.
    pub(crate) fn clear_nth(&mut self, parent: usize, n: usize) {
        let entries = &self.inodes[parent].entries;
        if let Some(name) = entries.keys().nth(n % entries.len().max(1)).cloned() {
            self.clear(parent, &name);
        }
    }

    pub(crate) fn describe(&mut self, inode: usize, metadata: Metadata) {
        self.writer.describe(self.inodes[inode].id, &metadata).unwrap();
        self.inodes[inode].metadata = metadata;
    }

    /// Returns the inodes that are in the tree: directories, and others.
    pub(crate) fn present(&self) -> (Vec<usize>, Vec<usize>) {
        let (mut directories, mut others, mut pending) = (Vec::new(), Vec::new(), vec![0]);
        while let Some(index) = pending.pop() {
            match self.inodes[index].node {
                Node::Directory => directories.push(index),
                _ => others.push(index),
            }
            pending.extend(self.inodes[index].entries.values());
        }
        (directories, others)
    }

    pub(crate) fn file_type(&self, inode: usize) -> FileType {
        self.writer.file_type(self.inodes[inode].id)
    }

    /// Returns the tree that a mount of the image must show, and the writer.
    pub(crate) fn finish(self) -> (BTreeMap<Vec<u8>, Found>, Writer<'a>) {
        let mut names: HashMap<usize, u64> = HashMap::new();
        let mut paths = Vec::new();
        let mut pending = vec![(Vec::new(), 0)];
        while let Some((path, index)) = pending.pop() {
            for (name, below) in &self.inodes[index].entries {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push(([&path, slash, name].concat(), *below));
            }
            *names.entry(index).or_default() += 1;
            paths.push((path, index));
        }
        paths.sort();
        let mut first: HashMap<usize, Vec<u8>> = HashMap::new();
        let found = paths.into_iter().map(|(path, index)| {
            let Inode { metadata, node, entries, .. } = &self.inodes[index];
            let subdirectories =
                entries.values().filter(|below| matches!(self.inodes[**below].node, Node::Directory));
            let links = match node {
                Node::Directory => 2 + subdirectories.count() as u64,
                _ => names[&index],
            };
            let found = Found {
                kind: kind(node),
                mode: if matches!(node, Node::Symlink(_)) { 0o777 } else { metadata.mode },
                uid: metadata.uid,
                gid: metadata.gid,
                mtime: metadata.mtime,
                xattrs: metadata.xattrs.iter().cloned().collect(),
                links,
                first_name: first.entry(index).or_insert_with(|| path.clone()).clone(),
            };
            (path, found)
        });
        (found.collect(), self.writer)
    }
}

fn kind(node: &Node) -> Kind {
    match node {
        Node::Directory => Kind::Directory,
        Node::File(content) => Kind::file(content),
        Node::Sparse(size, pieces) => {
            let mut content = vec![0; usize::try_from(*size).unwrap()];
            for (offset, bytes) in pieces {
                let at = usize::try_from(*offset).unwrap();
                content[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Kind::file(&content)
        }
        Node::Symlink(target) => Kind::Symlink(target.clone()),
        Node::Special(special) => match *special {
            Special::CharDevice(major, minor) => Kind::Device(FileType::CharDevice, (major, minor)),
            Special::BlockDevice(major, minor) => Kind::Device(FileType::BlockDevice, (major, minor)),
            Special::Fifo => Kind::Device(FileType::Fifo, (0, 0)),
            Special::Socket => Kind::Device(FileType::Socket, (0, 0)),
        },
    }
}

/// Writes an entry to the image.
pub(crate) fn write(
    writer: &mut Writer<'_>,
    parent: InodeId,
    name: &[u8],
    metadata: &Metadata,
    node: &Node,
) -> Result<InodeId, Error> {
    match node {
        Node::Directory => writer.directory(parent, name, metadata),
        Node::File(content) => {
            let mut body = writer.file(parent, name, metadata)?;
            // As from a tar: in pieces that do not align with blocks.
            for piece in content.chunks(3000) {
                body.write(piece)?;
            }
            body.end()
        }
        Node::Sparse(size, pieces) => {
            let map: Vec<Region> = pieces
                .iter()
                .map(|(offset, bytes)| Region { offset: *offset, length: bytes.len() as u64 })
                .collect();
            let mut body = writer.sparse(parent, name, metadata, *size, &map)?;
            for (offset, bytes) in pieces {
                let (head, rest) = bytes.split_at(bytes.len() / 2);
                body.write_at(*offset, head)?;
                body.write_at(offset + head.len() as u64, rest)?;
            }
            body.end()
        }
        Node::Symlink(target) => writer.symlink(parent, name, metadata, target),
        Node::Special(special) => writer.special(parent, name, metadata, *special),
    }
}
