//! A set of paths that needs little memory, for layers with a million links.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// A set that stores only two keyed 64-bit hashes of each path.
#[derive(Debug, Default)]
pub(super) struct PathSet {
    keys: (RandomState, RandomState),
    hashes: HashSet<(u64, u64)>,
}

impl PathSet {
    fn key(&self, path: &[u8]) -> (u64, u64) {
        (self.keys.0.hash_one(path), self.keys.1.hash_one(path))
    }

    pub(super) fn insert(&mut self, path: &[u8]) {
        self.hashes.insert(self.key(path));
    }

    pub(super) fn remove(&mut self, path: &[u8]) {
        if !self.hashes.is_empty() {
            self.hashes.remove(&self.key(path));
        }
    }

    pub(super) fn contains(&self, path: &[u8]) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.key(path))
    }
}
