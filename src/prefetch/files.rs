//! Iteration over the regular files of a layer.

use std::collections::HashSet;
use std::io;

use larder_layer::path;
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, FileType, Stat};

/// Calls `each` for every regular file of the tree at `diff`, once per inode, with its directory, name, clean
/// path and attributes.
pub(super) fn each(
    diff: Dir,
    each: impl FnMut(&Dir, &[u8], Vec<u8>, Stat) -> io::Result<()>,
) -> io::Result<()> {
    walk(diff, &mut Files { each, linked: HashSet::new() })
}

struct Files<F> {
    each: F,
    /// Inodes with more than one name that were visited.
    linked: HashSet<(u64, u64)>,
}

impl<F: FnMut(&Dir, &[u8], Vec<u8>, Stat) -> io::Result<()>> Visitor for Files<F> {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut directories = Vec::new();
        for name in dir.names()? {
            let stat = dir.stat(&name)?;
            match stat.file_type {
                FileType::Directory => directories.push(name),
                FileType::Regular if stat.links == 1 || self.linked.insert(stat.identity) => {
                    (self.each)(dir, &name, path::join(path, &name), stat)?;
                }
                _ => {}
            }
        }
        Ok(directories)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}
