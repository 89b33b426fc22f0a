//! What a later member of the same tar replaced. The tree loses it, but the tar-split file still has to give its content.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::super::error::{Context, Error};
use larder_sys::Dir;

/// Content of a member that a later member replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The path under which the tar-split file names it.
    pub path: Vec<u8>,
    /// Its name in the directory where it was set aside.
    pub name: String,
}

/// Paths whose content the tar-split file does not name: hard links, and files whose bytes it holds itself. Only hashes
/// are kept, two of 64 bits with keys of this process, so that a layer of a million links stays small.
#[derive(Debug, Default)]
pub(crate) struct Links {
    keys: (RandomState, RandomState),
    hashes: HashSet<(u64, u64)>,
}

impl Links {
    fn key(&self, path: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one(path), self.keys.1.hash_one(path))
    }

    pub(crate) fn insert(&mut self, path: &[u8]) {
        self.hashes.insert(self.key(path));
    }

    pub(crate) fn remove(&mut self, path: &[u8]) {
        if !self.hashes.is_empty() {
            self.hashes.remove(&self.key(path));
        }
    }

    pub(crate) fn contains(&self, path: &[u8]) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.key(path))
    }
}

/// Content that a later member replaced, out of the way until the tar-split file has taken it.
#[derive(Debug)]
pub(super) struct Parking<'a> {
    pub(super) dir: &'a Dir,
    pub(super) keep: bool,
    pub(super) replaced: Vec<Replaced>,
}

impl Parking<'_> {
    /// Moves a file out of the tree. Returns by how much that made the parking directory grow, bytes, or nothing where
    /// content need not be kept and the file is left to be removed.
    pub(super) fn park(&mut self, dir: &Dir, name: &[u8], at: &[u8]) -> Result<Option<u64>, Error> {
        if !self.keep {
            return Ok(None);
        }
        let before = self.dir.stat_self().context("setting aside", at)?.allocated;
        let parked = self.replaced.len().to_string();
        dir.rename(name, self.dir, parked.as_bytes()).context("setting aside", at)?;
        self.replaced.push(Replaced { path: at.to_vec(), name: parked });
        let after = self.dir.stat_self().context("setting aside", at)?.allocated;
        Ok(Some(after.saturating_sub(before)))
    }
}
