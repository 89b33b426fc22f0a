//! Removes what a later member of the same tar replaces.

use std::io;

use super::super::super::error::{Context, Error};
use super::super::super::path;
use super::{Destination, Overlay};
use larder_sys::walk::{Visitor, walk};
use larder_sys::{Dir, FileType, Stat, remove};

impl Overlay<'_> {
    /// Removes what is at the path of a new member. Keeps content that the tar-split file still needs.
    pub(super) fn clear(&mut self, destination: &Destination) -> Result<(), Error> {
        let (Destination { parent, at }, name) = (destination, destination.name());
        self.wait()?;
        self.tree.end_growth_run(at)?;
        let stat = parent.dir.stat(name).context("examining", at)?;
        if !stat.is_dir() {
            return self.discard(&parent.dir, name, at, &stat);
        }
        path::remove_tree(&mut self.tree.lower_links, at);
        let removed = parent.dir.open_dir(name).context("opening", at)?;
        let mut clearing = Clearing { sink: self, top: at, freed: 0 };
        walk(removed, &mut clearing)?;
        let freed = clearing.freed;
        remove::tree(&parent.dir, name).context("removing", at)?;
        self.tree.release(freed);
        self.tree.forget(at);
        Ok(())
    }

    fn discard(&mut self, dir: &Dir, name: &[u8], at: &[u8], stat: &Stat) -> Result<(), Error> {
        if stat.file_type == FileType::Regular && stat.size > 0 && !self.without_content.contains(at) {
            self.tree.count_memory(at.len(), at)?;
            if let Some(grown) = self.replaced_files.move_out(dir, name, at)? {
                return self.tree.reserve(grown, at);
            }
        }
        dir.unlink(name).context("removing", at)?;
        if stat.links == 1 {
            self.tree.release(stat.allocated);
        }
        Ok(())
    }
}

/// Removes the contents of a directory that a member replaces.
struct Clearing<'a, 'b> {
    sink: &'a mut Overlay<'b>,
    top: &'a [u8],
    freed: u64,
}

impl Visitor for Clearing<'_, '_> {
    type Error = Error;

    fn enter(&mut self, dir: &Dir, path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let here = path::join(self.top, path);
        self.freed += dir.stat_self().context("examining", &here)?.allocated;
        let mut directories = Vec::new();
        for name in dir.names().context("listing", &here)? {
            let at = path::join(&here, &name);
            let stat = dir.stat(&name).context("examining", &at)?;
            if stat.is_dir() {
                directories.push(name);
            } else {
                self.sink.discard(dir, &name, &at, &stat)?;
            }
        }
        Ok(directories)
    }

    fn failed(&mut self, path: &[u8], error: io::Error) -> Error {
        Error::io("walking", path, error)
    }
}
