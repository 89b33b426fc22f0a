//! Contents that a later member of the same tar replaced. They leave the tree, but the tar-split file still
//! needs them.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::super::error::{Context, Error};
use larder_sys::Dir;

/// The content of a member that a later member replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Path of the file in the tar-split file.
    pub path: Vec<u8>,
    /// Name of the content in the directory for replaced files.
    pub name: String,
}

/// Paths whose content the tar-split file does not refer to: hard links, and files whose bytes it contains.
/// Only two keyed 64-bit hashes per path are stored, so that a layer with a million links needs little
/// memory.
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

/// Replaced contents, stored outside the tree until they are written to the tar-split file.
#[derive(Debug)]
pub(super) struct ReplacedFiles<'a> {
    pub(super) dir: &'a Dir,
    pub(super) keep: bool,
    pub(super) replaced: Vec<Replaced>,
}

impl ReplacedFiles<'_> {
    /// Moves a file out of the tree. Returns by how many bytes the directory of replaced files grew. Returns
    /// `None` if contents are not kept; the caller then removes the file.
    pub(super) fn move_out(&mut self, dir: &Dir, name: &[u8], at: &[u8]) -> Result<Option<u64>, Error> {
        if !self.keep {
            return Ok(None);
        }
        let before = self.dir.stat_self().context("moving the replaced file", at)?.allocated;
        let new_name = self.replaced.len().to_string();
        dir.rename(name, self.dir, new_name.as_bytes()).context("moving the replaced file", at)?;
        self.replaced.push(Replaced { path: at.to_vec(), name: new_name });
        let after = self.dir.stat_self().context("moving the replaced file", at)?.allocated;
        Ok(Some(after.saturating_sub(before)))
    }
}
