//! Counts the disk usage of a tree as containerd does: allocated bytes and inodes, each inode once, including
//! the root.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::Usage;
use super::error::Error;
use larder_model::io_error::Context as _;
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, Stat};

/// Counts the tree at `path`. Files that are created or removed in the meantime might be counted.
pub(super) fn of(path: &Path) -> Result<Usage, Error> {
    let mut count = Count { usage: Usage::default(), linked: HashSet::new() };
    let mut count_all = || {
        let top = Dir::open(path)?;
        count.add(&top.stat_self()?);
        walk(top, &mut count)
    };
    count_all().context("counting", path.display())?;
    Ok(count.usage)
}

struct Count {
    usage: Usage,
    /// Inodes with several names that are already counted.
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        if stat.is_dir() || stat.links < 2 || self.linked.insert(stat.identity) {
            self.usage.size += stat.allocated;
            self.usage.inodes += 1;
        }
    }
}

impl Visitor for Count {
    type Error = io::Error;

    fn enter(&mut self, dir: &Dir, _: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut directories = Vec::new();
        for name in dir.names()? {
            let Some(stat) = dir.try_stat(&name)? else { continue };
            self.add(&stat);
            if stat.is_dir() {
                directories.push(name);
            }
        }
        Ok(directories)
    }

    fn failed(&mut self, _: &[u8], error: io::Error) -> io::Error {
        error
    }
}
