//! Asking for room before bytes are written. The volume answers; a layer only knows that there is somebody to ask.

use std::fmt;

use larder_model::shortage::Shortage;

/// Somebody who keeps account of the bytes of a volume.
pub trait Space: Send + Sync + fmt::Debug {
    /// Sets `bytes` aside for what is about to be written.
    fn reserve(&self, bytes: u64) -> Result<(), Shortage>;

    /// Gives back what was set aside or freed.
    fn release(&self, bytes: u64);

    /// What is lacking after the file system refused for want of room; nothing where the account knows of no want.
    fn exhausted(&self) -> Option<Shortage> {
        None
    }
}

/// Nobody keeps account: the file system alone says when it is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncounted;

impl Space for Uncounted {
    fn reserve(&self, _: u64) -> Result<(), Shortage> {
        Ok(())
    }

    fn release(&self, _: u64) {}
}
