//! The kernel's view of an image.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;

use larder_model::digest::{Algorithm, Digest, Hasher};
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, FileType, Stat, Timestamp, xattr};

/// All metadata and content of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) links: u64,
    /// First path, in sort order, of the same inode.
    pub(crate) first_name: Vec<u8>,
}

/// Type and content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(u64, Digest),
    Symlink(Vec<u8>),
    Device(FileType, (u32, u32)),
}

impl Kind {
    pub(crate) fn file(content: &[u8]) -> Self {
        Kind::File(content.len() as u64, Digest::sha256(content))
    }
}

/// Reads the tree at `root` through descriptors, because paths in it can exceed PATH_MAX.
pub(crate) fn scan(root: &Path) -> BTreeMap<Vec<u8>, Found> {
    let mut scan = Scan::default();
    let root = Dir::open(root).unwrap();
    let stat = root.stat_self().unwrap();
    let attributes = xattr::all(&root).unwrap();
    scan.add(Vec::new(), Kind::Directory, &stat, attributes);
    walk(root, &mut scan).unwrap();
    let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let found = scan.found.into_iter().map(|(path, (identity, mut found))| {
        found.first_name = first.entry(identity).or_insert_with(|| path.clone()).clone();
        (path, found)
    });
    found.collect()
}

#[derive(Default)]
struct Scan {
    found: BTreeMap<Vec<u8>, ((u64, u64), Found)>,
}

impl Scan {
    fn add(&mut self, path: Vec<u8>, kind: Kind, stat: &Stat, xattrs: Vec<(Vec<u8>, Vec<u8>)>) {
        let found = Found {
            kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            xattrs: xattrs.into_iter().collect(),
            links: stat.links,
            first_name: Vec::new(),
        };
        self.found.insert(path, (stat.identity, found));
    }
}

impl Visitor for Scan {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut directories = Vec::new();
        for name in dir.names()? {
            let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
            let at = [path, slash, &name].concat();
            let stat = dir.stat(&name)?;
            let kind = match stat.file_type {
                FileType::Directory => {
                    directories.push(name.clone());
                    Kind::Directory
                }
                FileType::Regular => {
                    let mut hasher = Hasher::new(Algorithm::Sha256);
                    let mut file = dir.open_file(&name)?;
                    let mut buffer = vec![0; 1 << 20];
                    loop {
                        match file.read(&mut buffer)? {
                            0 => break Kind::File(stat.size, hasher.finish()),
                            len => hasher.update(&buffer[..len]),
                        }
                    }
                }
                FileType::Symlink => Kind::Symlink(dir.read_link(&name)?),
                other => Kind::Device(other, stat.device),
            };
            let attributes = xattr::all_at(dir, &name)?;
            self.add(at, kind, &stat, attributes);
        }
        Ok(directories)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}

/// Returns every difference, one line each.
pub(crate) fn differences(
    expected: &BTreeMap<Vec<u8>, Found>,
    found: &BTreeMap<Vec<u8>, Found>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, want) in expected {
        match found.get(path) {
            None => lines.push(format!("/{}: is missing", path.escape_ascii())),
            Some(have) if have != want => {
                lines.push(format!("/{}: want {want:?}\n    have {have:?}", path.escape_ascii()));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|path| !expected.contains_key(*path));
    lines.extend(extra.map(|path| format!("/{}: is there and should not be", path.escape_ascii())));
    lines
}
