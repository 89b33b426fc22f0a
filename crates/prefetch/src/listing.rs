//! The list of one image's files while it grows.

use std::collections::HashSet;
use std::io;

use larder_layer::stored::StoredDir;
use larder_model::manifest::Process;

use super::list::Entry;
use super::view::{Found, View};

/// Maximum number of files for one image.
const MAX_FILES: usize = 1024;

/// Files of one image, each listed once, in the order in which a start reads them.
#[derive(Debug)]
pub(super) struct Listing<'a> {
    view: View,
    process: &'a Process,
    /// Names of the trees, topmost first.
    trees: Vec<String>,
    seen: HashSet<(usize, Vec<u8>)>,
    files: Vec<Entry>,
}

impl<'a> Listing<'a> {
    /// Creates an empty list of files of `layers`, topmost first.
    pub(super) fn new(layers: Vec<(String, StoredDir)>, process: &'a Process) -> Self {
        let (trees, roots): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        Listing { view: View::new(roots), process, trees, seen: HashSet::new(), files: Vec::new() }
    }

    /// Returns the process that the image's config describes.
    pub(super) fn process(&self) -> &'a Process {
        self.process
    }

    /// Finds the regular file that `path` refers to in the container.
    pub(super) fn find(&mut self, path: &[u8]) -> io::Result<Option<Found>> {
        self.view.file(path, self.process.working_dir.as_bytes())
    }

    /// Adds a file to the list, once.
    pub(super) fn add(&mut self, found: &Found) {
        if self.files.len() < MAX_FILES && self.seen.insert((found.layer(), found.path.clone())) {
            let tree = self.trees[found.layer()].clone();
            self.files.push(Entry { tree, path: found.path.clone(), size: found.stat.size });
        }
    }

    /// Reports whether a limit was reached, so that no further file can be listed.
    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= MAX_FILES || self.view.is_exhausted()
    }

    /// Returns the listed files.
    pub(super) fn into_files(self) -> Vec<Entry> {
        self.files
    }
}
