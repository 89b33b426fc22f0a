//! Resolves a path in a tree in memory, and compares the result with a naive reference.
//!
//! Each line of the input but the last is an entry: `d` and a path for a directory, `f` and a path for a
//! file, `l` and a path, `>` and a target for a symbolic link. The last line is the path to resolve.
#![no_main]

use std::collections::BTreeMap;
use std::convert::Infallible;

use larder_layer::error::Fault;
use larder_layer::limits::{MAX_DEPTH, NAME_MAX};
use larder_layer::path;
use larder_layer::resolve::{self, Entry, ResolveError, Resolved, resolve};
use libfuzzer_sys::fuzz_target;

const MAX_LINKS: usize = 40;
const MAX_LOOKUPS: usize = 1 << 17;

fuzz_target!(|input: &[u8]| {
    let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let wanted = lines.pop().unwrap_or_default();
    let mut tree = Tree::default();
    lines.into_iter().for_each(|line| tree.add(line));
    let expected = reference(&tree, wanted);
    let found = match resolve(&mut tree, wanted) {
        Ok(Resolved::Directory { dir, path }) => {
            assert_eq!(tree.find(&path), dir, "the path of the directory leads to it");
            Outcome::Directory(dir)
        }
        Ok(Resolved::Other { parent, path, is_last }) => {
            let (above, name) = path::split(&path);
            assert_eq!(tree.find(above), parent, "the path of the entry leads to its directory");
            let Node::Directory { entries, .. } = &tree.nodes[parent] else { panic!("the parent is a file") };
            Outcome::Other(entries[name], is_last)
        }
        Ok(Resolved::Missing(path)) => {
            assert_eq!(path::clean(&path).as_ref(), Ok(&path), "a missing path is clean");
            Outcome::Missing(path)
        }
        Err(ResolveError::Path(fault)) => Outcome::Fault(fault),
        Err(ResolveError::Tree(never)) => match never {},
    };
    assert!(tree.links <= MAX_LINKS + 1, "followed {} links", tree.links);
    // The directory of the result is opened once more.
    assert!(tree.lookups <= MAX_LOOKUPS + MAX_DEPTH, "took {} lookups", tree.lookups);
    // The reference finds the directory above without a lookup, so it has no such limit.
    if !matches!(found, Outcome::Fault(Fault::TooManyLookups { .. })) {
        assert_eq!(found, expected);
    }
});

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Directory(usize),
    Other(usize, bool),
    Missing(Vec<u8>),
    Fault(Fault),
}

enum Node {
    Directory { parent: usize, path: Vec<u8>, entries: BTreeMap<Vec<u8>, usize> },
    File,
    Symlink(Vec<u8>),
}

/// A tree of nodes; the first is the root. Counts the links that were read, and the lookups.
struct Tree {
    nodes: Vec<Node>,
    links: usize,
    lookups: usize,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node::Directory { parent: 0, path: Vec::new(), entries: BTreeMap::new() };
        Tree { nodes: vec![root], links: 0, lookups: 0 }
    }
}

impl Tree {
    fn add(&mut self, line: &[u8]) {
        let Some((kind, line)) = line.split_first() else { return };
        let (at, target) = match line.iter().position(|byte| *byte == b'>') {
            Some(end) if *kind == b'l' => (&line[..end], &line[end + 1..]),
            _ => (line, &b""[..]),
        };
        let Ok(at) = path::clean(at) else { return };
        let (parent, name) = path::split(&at);
        if name.is_empty() {
            return;
        }
        let above = path::components(parent).try_fold(0, |parent, name| self.directory_in(parent, name));
        let Some(parent) = above else { return };
        match kind {
            b'd' => drop(self.directory_in(parent, name)),
            b'l' => drop(self.insert(parent, name, Node::Symlink(target.to_vec()))),
            _ => drop(self.insert(parent, name, Node::File)),
        }
    }

    /// Returns the directory `name`, which is created if it does not exist.
    fn directory_in(&mut self, parent: usize, name: &[u8]) -> Option<usize> {
        let Node::Directory { entries, path, .. } = &self.nodes[parent] else { return None };
        match entries.get(name) {
            Some(found) => matches!(self.nodes[*found], Node::Directory { .. }).then_some(*found),
            None => {
                let path = path::join(path, name);
                self.insert(parent, name, Node::Directory { parent, path, entries: BTreeMap::new() })
            }
        }
    }

    fn insert(&mut self, parent: usize, name: &[u8], node: Node) -> Option<usize> {
        let number = self.nodes.len();
        let Node::Directory { entries, .. } = &mut self.nodes[parent] else { return None };
        if entries.contains_key(name) {
            return None;
        }
        entries.insert(name.to_vec(), number);
        self.nodes.push(node);
        Some(number)
    }

    /// Returns the directory at a path that exists and contains no symbolic link.
    fn find(&self, path: &[u8]) -> usize {
        let found = path::components(path).fold(0, |at, name| match &self.nodes[at] {
            Node::Directory { entries, .. } => entries[name],
            _ => panic!("{} is below a file", path.escape_ascii()),
        });
        assert!(matches!(self.nodes[found], Node::Directory { .. }));
        found
    }
}

impl resolve::Tree for Tree {
    type Dir = usize;
    type Error = Infallible;

    fn directory(&mut self, path: &[u8]) -> Result<usize, Infallible> {
        self.lookups += path::components(path).count();
        Ok(self.find(path))
    }

    fn entry(&mut self, dir: &usize, name: &[u8], at: &[u8]) -> Result<Entry<usize>, Infallible> {
        self.lookups += 1;
        let Node::Directory { entries, path, .. } = &self.nodes[*dir] else {
            panic!("a file has no entries")
        };
        assert!(![&b""[..], b".", b".."].contains(&name) && !name.contains(&b'/') && name.len() <= NAME_MAX);
        assert_eq!(path::join(path, name), at);
        Ok(match entries.get(name).map(|number| (number, &self.nodes[*number])) {
            None => Entry::Missing,
            Some((number, Node::Directory { .. })) => Entry::Directory(*number),
            Some((_, Node::File)) => Entry::Other,
            Some((_, Node::Symlink(target))) => {
                self.links += 1;
                Entry::Symlink(target.clone())
            }
        })
    }
}

/// Resolves a path by the numbers of nodes, as a kernel does, and rewrites the text of the path at each link.
fn reference(tree: &Tree, wanted: &[u8]) -> Outcome {
    let (mut here, mut links, mut text) = (0, 0, wanted.to_vec());
    loop {
        let Some(start) = text.iter().position(|byte| *byte != b'/') else { return Outcome::Directory(here) };
        let end = text[start..].iter().position(|byte| *byte == b'/').map_or(text.len(), |len| start + len);
        let (name, rest) = (text[start..end].to_vec(), text[end..].to_vec());
        let Node::Directory { parent, path, entries } = &tree.nodes[here] else { panic!("not a directory") };
        text = rest;
        match name.as_slice() {
            b"." => continue,
            b".." => {
                here = *parent;
                continue;
            }
            name if name.len() > NAME_MAX => return Outcome::Fault(Fault::NameTooLong),
            _ if path::components(path).count() == MAX_DEPTH => return Outcome::Fault(Fault::TooDeep),
            _ => {}
        }
        let Some(number) = entries.get(&name) else {
            let missing = [path::join(path, &name), text].concat();
            return path::clean(&missing).map_or_else(Outcome::Fault, Outcome::Missing);
        };
        match &tree.nodes[*number] {
            Node::Directory { .. } => here = *number,
            Node::File => return Outcome::Other(*number, text.is_empty()),
            Node::Symlink(_) if links == MAX_LINKS => return Outcome::Fault(Fault::Loop),
            Node::Symlink(target) => {
                links += 1;
                here = if target.first() == Some(&b'/') { 0 } else { here };
                text = [target.as_slice(), &text].concat();
            }
        }
    }
}
