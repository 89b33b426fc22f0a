//! A reference implementation that applies layers one after the other, whiteouts first, to a tree in memory.
//! It shares no code with Larder, and favours clarity.

use std::collections::{BTreeMap, BTreeSet};

use larder_model::digest::Digest;

use crate::harness::layers::{Member, Node};
use crate::harness::tree::{Entry, Kind, Tree};

/// The tree after the layers so far.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    names: BTreeMap<Vec<String>, Named>,
    implied: Vec<String>,
    inodes: u64,
}

#[derive(Clone, Debug)]
struct Named {
    inode: u64,
    entry: Entry,
}

type Path = Vec<String>;

impl Reference {
    /// Applies one layer to the tree.
    pub(crate) fn apply(&mut self, members: &[Member]) {
        for member in members {
            let (parent, name) = split(&member.path);
            if name == ".wh..wh..opq" {
                self.names.retain(|path, _| !(path.len() > parent.len() && path.starts_with(&parent)));
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                let hidden = [&parent[..], &[hidden.to_owned()]].concat();
                self.remove(&hidden);
            }
        }
        if !members.iter().any(|member| components(&member.path).is_empty()) {
            self.implied.push(String::new());
        }
        let mut own = BTreeSet::new();
        for member in members {
            self.add(member, &mut own);
        }
    }

    fn add(&mut self, member: &Member, own: &mut BTreeSet<Path>) {
        let (parent, name) = split(&member.path);
        let mut path = self.enter(&parent, own);
        if name.starts_with(".wh.") {
            return;
        }
        if !name.is_empty() {
            path.push(name);
        }
        if let Node::HardLink(target) = &member.node {
            let (parent, name) = split(target);
            let mut target = self.enter(&parent, own);
            target.push(name);
            if !own.contains(&target) {
                // The file of a lower layer is copied up: a new inode, with both names.
                let copy = self.names[&target].entry.clone();
                self.put(&target, copy, own);
            }
            self.remove(&path);
            let linked = self.names[&target].clone();
            let inode = linked.inode;
            self.names.insert(path.clone(), linked);
            own.insert(path);
            // As in all runtimes, the metadata in the link's own header applies to the inode.
            for named in self.names.values_mut().filter(|named| named.inode == inode) {
                (named.entry.mode, named.entry.uid, named.entry.gid) = (member.mode, member.uid, member.gid);
                named.entry.mtime = Some(member.mtime);
            }
            return;
        }
        let kind = match &member.node {
            Node::File(content) => Kind::File(Digest::sha256(content)),
            Node::Directory => Kind::Directory,
            Node::Symlink(target) => Kind::Symlink(target.clone()),
            Node::Character(major, minor) => Kind::Character(u64::from(major << 8 | minor)),
            Node::Fifo => Kind::Fifo,
            Node::HardLink(_) => return,
        };
        let mode = match kind {
            Kind::Symlink(_) => 0o777,
            _ => member.mode,
        };
        let entry = Entry {
            kind,
            mode,
            uid: member.uid,
            gid: member.gid,
            mtime: Some(member.mtime),
            xattrs: member.xattrs.iter().cloned().collect(),
            first_name: String::new(),
        };
        self.put(&path, entry, own);
    }

    /// Resolves `parent`, creates missing directories, and returns the resulting path.
    ///
    /// A symbolic link of this layer is followed. A lower layer's link or file at the path of a parent is
    /// replaced.
    fn enter(&mut self, parent: &[String], own: &mut BTreeSet<Path>) -> Path {
        let mut at: Path = Vec::new();
        let mut pending: Vec<String> = parent.iter().rev().cloned().collect();
        while let Some(component) = pending.pop() {
            if component == ".." {
                at.pop();
                continue;
            }
            at.push(component);
            match self.names.get(&at).map(|named| named.entry.kind.clone()) {
                Some(Kind::Directory) => {
                    if own.insert(at.clone()) {
                        self.implied.push(at.join("/"));
                    }
                }
                Some(Kind::Symlink(target)) if own.contains(&at) => {
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    pending.extend(components(&target).into_iter().rev());
                }
                _ => {
                    let entry = Entry {
                        kind: Kind::Directory,
                        mode: 0o755,
                        uid: 0,
                        gid: 0,
                        mtime: None,
                        xattrs: BTreeMap::new(),
                        first_name: String::new(),
                    };
                    self.put(&at, entry, own);
                    self.implied.push(at.join("/"));
                }
            }
        }
        at
    }

    /// Replaces the entry at `path`. The content of a directory stays if the new entry is a directory.
    fn put(&mut self, path: &Path, entry: Entry, own: &mut BTreeSet<Path>) {
        let directory = |named: &Named| named.entry.kind == Kind::Directory;
        if entry.kind != Kind::Directory || !self.names.get(path).is_some_and(directory) {
            self.remove(path);
        }
        self.inodes += 1;
        let inode = self.inodes;
        self.names.insert(path.clone(), Named { inode, entry });
        own.insert(path.clone());
    }

    fn remove(&mut self, path: &Path) {
        self.names.retain(|name, _| !name.starts_with(path));
    }

    /// Returns the resulting tree.
    pub(crate) fn tree(&self) -> Tree {
        let mut first: BTreeMap<u64, String> = BTreeMap::new();
        let mut names: Vec<_> = self.names.iter().map(|(path, named)| (path.join("/"), named)).collect();
        names.sort_unstable_by(|a, b| a.0.split('/').cmp(b.0.split('/')));
        let entries = names.into_iter().map(|(path, named)| {
            let mut entry = named.entry.clone();
            entry.first_name = first.entry(named.inode).or_insert_with(|| path.clone()).clone();
            (path, entry)
        });
        entries.collect()
    }

    /// Returns the directories, including the root, that some layer implies and does not contain.
    pub(crate) fn implied(&self) -> &[String] {
        &self.implied
    }

    /// Returns the type of `path`; `None` if it does not exist.
    pub(crate) fn kind(&self, path: &str) -> Option<&Kind> {
        self.names.get(&components(path)).map(|named| &named.entry.kind)
    }

    /// Returns the path of every regular file.
    pub(crate) fn files(&self) -> Vec<String> {
        let files = self.names.iter().filter(|(_, named)| matches!(named.entry.kind, Kind::File(_)));
        files.map(|(path, _)| path.join("/")).collect()
    }
}

fn components(path: &str) -> Path {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.map(str::to_owned).collect()
}

/// Splits a path into parent and name. Both are empty for the root.
fn split(path: &str) -> (Path, String) {
    let mut parent = components(path);
    let name = parent.pop().unwrap_or_default();
    (parent, name)
}
