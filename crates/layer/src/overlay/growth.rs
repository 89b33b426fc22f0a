//! The account of directories that grow while names are made in them.
//!
//! Nobody can tell beforehand by how much a name makes its directory grow, and looking after each would be one more system
//! call for every file. So room for a run of names is set aside once for the whole layer; what the directory grew by is
//! looked up and reserved when a run is full, or the next name is made in another directory.

use std::rc::Rc;

use super::super::error::{Context, Error, named};
use super::super::space::Space;
use super::tree::Place;

/// Most names of a run. Each may cost a leaf block; more of them would save nothing that can be measured.
const RUN: u64 = 16;

/// What names can cost beside their leaf blocks: two index blocks and a converted root.
const INDEX_BLOCKS: u64 = 3;

#[derive(Debug)]
pub(super) struct Growth<'a> {
    space: &'a dyn Space,
    block: u64,
    /// Where the present run is made, and what that directory occupied before, bytes.
    place: Option<(Rc<Place>, u64)>,
    /// Names made in the present run.
    names: u64,
    /// Names for which room is set aside.
    run: u64,
}

impl<'a> Growth<'a> {
    /// Sets aside room for a run of names; for single ones where there is no more.
    pub(super) fn new(space: &'a dyn Space, block: u64) -> Result<Self, Error> {
        let mut growth = Growth { space, block, place: None, names: 0, run: RUN };
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

    /// The next name, `path`, will be made in `place`.
    pub(super) fn watch(&mut self, place: &Rc<Place>, path: &[u8]) -> Result<(), Error> {
        if self.place.as_ref().is_none_or(|(watched, _)| !Rc::ptr_eq(watched, place)) {
            self.settle(path)?;
            let before = place.dir.stat_self().context("examining the parent of", path)?.allocated;
            self.place = Some((Rc::clone(place), before));
        }
        Ok(())
    }

    /// A name was made in the directory that is watched.
    pub(super) fn named(&mut self, path: &[u8]) -> Result<(), Error> {
        self.names += 1;
        if self.names < self.run { Ok(()) } else { self.settle(path) }
    }

    /// Ends the present run: what its directory grew by is reserved, out of the room that was set aside beforehand.
    pub(super) fn settle(&mut self, path: &[u8]) -> Result<(), Error> {
        if self.names == 0 {
            return Ok(());
        }
        self.names = 0;
        let Some((place, before)) = &mut self.place else { return Ok(()) };
        let now = place.dir.stat_self().context("examining the parent of", path)?.allocated;
        let grown = now.saturating_sub(*before);
        *before = now;
        if grown > 0 { self.reserve(grown, path) } else { Ok(()) }
    }

    /// Room has become scarce: gives back what is set aside for more than one name. False where that was done before.
    pub(super) fn shorten(&mut self, path: &[u8]) -> Result<bool, Error> {
        if self.run == 1 {
            return Ok(false);
        }
        // The growth of the present run comes out of this room, so the room is given back first.
        let room = self.room();
        self.run = 1;
        self.space.release(room - self.room());
        self.settle(path).map(|()| true)
    }

    /// Ends the account and gives the room back.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.settle(b"")?;
        self.space.release(self.room());
        Ok(())
    }
}
