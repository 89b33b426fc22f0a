//! Accounts for directories that grow while names are created in them.
//!
//! The growth caused by a name cannot be predicted, and checking after each name would cost one more system
//! call per file. So space for a run of names is reserved once for the whole layer. The actual growth of a
//! directory is determined and reserved when a run is full, or when the next name is in another directory.

use std::rc::Rc;

use super::super::error::{Context, Error, named};
use super::super::space::Space;
use super::open_dir::OpenDir;

/// Maximum number of names in a run. Each can cost a leaf block; longer runs save nothing measurable.
const RUN: u64 = 16;

/// Blocks that names can cost in addition to their leaf blocks: two index blocks and a converted root.
const INDEX_BLOCKS: u64 = 3;

#[derive(Debug)]
pub(super) struct Growth<'a> {
    space: &'a dyn Space,
    block: u64,
    /// The directory of the current run, and its allocated size before the run, bytes.
    parent: Option<(Rc<OpenDir>, u64)>,
    /// Number of names created in the current run.
    names: u64,
    /// Number of names for which space is reserved.
    run: u64,
}

impl<'a> Growth<'a> {
    /// Reserves space for a run of names, or for a single name if there is not enough space.
    pub(super) fn new(space: &'a dyn Space, block: u64) -> Result<Self, Error> {
        let mut growth = Growth { space, block, parent: None, names: 0, run: RUN };
        if space.reserve(growth.room()).is_err() {
            growth.run = 1;
            growth.reserve(growth.room(), b"")?;
        }
        Ok(growth)
    }

    fn room(&self) -> u64 {
        (self.run + INDEX_BLOCKS) * self.block
    }

    fn reserve(&self, bytes: u64, path: &[u8]) -> Result<(), Error> {
        self.space.reserve(bytes).map_err(|full| Error::Full { path: named(path), full })
    }

    /// Prepares for creating the next name, `path`, in `parent`.
    pub(super) fn watch(&mut self, parent: &Rc<OpenDir>, path: &[u8]) -> Result<(), Error> {
        if self.parent.as_ref().is_none_or(|(watched, _)| !Rc::ptr_eq(watched, parent)) {
            self.end_run(path)?;
            let before = parent.dir.stat_self().context("examining the parent of", path)?.allocated;
            self.parent = Some((Rc::clone(parent), before));
        }
        Ok(())
    }

    /// Records that a name was created in the watched directory.
    pub(super) fn name_created(&mut self, path: &[u8]) -> Result<(), Error> {
        self.names += 1;
        if self.names < self.run { Ok(()) } else { self.end_run(path) }
    }

    /// Ends the current run and reserves what its directory grew by. The space reserved in advance guarantees
    /// the room for it.
    pub(super) fn end_run(&mut self, path: &[u8]) -> Result<(), Error> {
        if self.names == 0 {
            return Ok(());
        }
        self.names = 0;
        let Some((parent, before)) = &mut self.parent else { return Ok(()) };
        let now = parent.dir.stat_self().context("examining the parent of", path)?.allocated;
        let grown = now.saturating_sub(*before);
        *before = now;
        if grown > 0 { self.reserve(grown, path) } else { Ok(()) }
    }

    /// Releases the space reserved for more than one name, because space is scarce. Returns `false` if that
    /// was done before.
    pub(super) fn shorten(&mut self, path: &[u8]) -> Result<bool, Error> {
        if self.run == 1 {
            return Ok(false);
        }
        // The growth of the current run uses this space, so it is released first.
        let room = self.room();
        self.run = 1;
        self.space.release(room - self.room());
        self.end_run(path).map(|()| true)
    }

    /// Ends the account and releases its space.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.end_run(b"")?;
        self.space.release(self.room());
        Ok(())
    }
}
