//! Reserving space before bytes are written. The volume implements this; a layer only sees the trait.

use std::fmt;

use larder_model::shortage::Shortage;

/// An account of the bytes of a volume.
pub trait Space: Send + Sync + fmt::Debug {
    /// Reserves `bytes` for data that is about to be written.
    ///
    /// # Errors
    /// The [`Shortage`], if that many bytes are not available.
    fn reserve(&self, bytes: u64) -> Result<(), Shortage>;

    /// Returns bytes that were reserved and not used, or that were freed.
    fn release(&self, bytes: u64);

    /// Returns the shortage after the file system reported that it is full; `None` if the account shows no
    /// shortage.
    fn exhausted(&self) -> Option<Shortage> {
        None
    }
}

/// No accounting: only the file system itself reports when it is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAccounting;

impl Space for NoAccounting {
    fn reserve(&self, _: u64) -> Result<(), Shortage> {
        Ok(())
    }

    fn release(&self, _: u64) {}
}
