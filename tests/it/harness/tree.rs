//! A file tree as data, so that trees from different sources can be compared.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use larder_model::digest::Digest;

/// All metadata and content of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// Permission bits; 0777 of a symbolic link.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch; `None` if no rule defines it.
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
    /// First path, in sort order, of the same inode.
    pub(crate) first_name: String,
}

/// Type and content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File(Digest),
    Directory,
    Symlink(String),
    Character(u64),
    Block(u64),
    Fifo,
    Socket,
}

/// Entries by path relative to the root, whose own path is empty.
pub(crate) type Tree = BTreeMap<String, Entry>;

/// Reads the tree below `root`, without following links.
pub(crate) fn scan(root: &Path) -> Tree {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push(path);
    }
    found.sort_unstable();
    let mut inodes: HashMap<(u64, u64), String> = HashMap::new();
    let entries = found.iter().map(|path| {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let name = name.escape_ascii().to_string();
        let metadata = fs::symlink_metadata(path).unwrap();
        let kind = metadata.file_type();
        let kind = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            let target = fs::read_link(path).unwrap().into_os_string().into_vec();
            Kind::Symlink(target.escape_ascii().to_string())
        } else if kind.is_file() {
            Kind::File(Digest::sha256(&fs::read(path).unwrap()))
        } else if kind.is_char_device() {
            Kind::Character(metadata.rdev())
        } else if kind.is_block_device() {
            Kind::Block(metadata.rdev())
        } else if kind.is_fifo() {
            Kind::Fifo
        } else {
            Kind::Socket
        };
        let inode = (metadata.dev(), metadata.ino());
        let entry = Entry {
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: Some((metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap())),
            xattrs: xattrs(path),
            first_name: inodes.entry(inode).or_insert_with(|| name.clone()).clone(),
        };
        (name, entry)
    });
    entries.collect()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8(name.to_vec()).unwrap());
    // Attributes of the machine's security module and of overlayfs are not part of the layer.
    let names = names.filter(|name| !name.starts_with("trusted.overlay.") && name != "security.selinux");
    let values = names.map(|name| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
        value.truncate(len);
        (name, value)
    });
    values.collect()
}

/// Differences that a comparison ignores, because runtimes are known to disagree on them
/// (docs/reference/runtimes.md).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tolerance<'a> {
    /// Modification times of directories.
    pub(crate) directory_times: bool,
    /// Metadata of these directories, which some layer implies and does not contain.
    pub(crate) directories: &'a [String],
}

/// Returns every difference, one line each.
pub(crate) fn differences(expected: &Tree, found: &Tree, tolerance: Tolerance<'_>) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, entry) in expected {
        let Some(other) = found.get(path) else {
            lines.push(format!("/{path}: is missing: {entry:?}"));
            continue;
        };
        let (mut entry, mut other) = (entry.clone(), other.clone());
        let directory = entry.kind == Kind::Directory;
        if entry.mtime.is_none() || directory && tolerance.directory_times {
            (entry.mtime, other.mtime) = (None, None);
        }
        if directory && other.kind == Kind::Directory && tolerance.directories.contains(path) {
            continue;
        }
        if entry != other {
            lines.push(format!("/{path}: want {entry:?}\n    found {other:?}"));
        }
    }
    let extra = found.keys().filter(|path| !expected.contains_key(*path));
    lines.extend(extra.map(|path| format!("/{path}: is there and should not be")));
    lines
}
