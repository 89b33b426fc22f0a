//! Asking for room before bytes are written. The volume answers; a layer only knows that there is somebody to ask.

use std::fmt;

use crate::model::size::ByteSize;

/// Somebody who keeps account of the bytes of a volume.
pub trait Space: Send + Sync + fmt::Debug {
    /// Sets `bytes` aside for what is about to be written.
    fn reserve(&self, bytes: u64) -> Result<(), Full>;

    /// Gives back what was set aside or freed.
    fn release(&self, bytes: u64);
}

/// Nobody keeps account: the file system alone says when it is full.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uncounted;

impl Space for Uncounted {
    fn reserve(&self, _: u64) -> Result<(), Full> {
        Ok(())
    }

    fn release(&self, _: u64) {}
}

/// The cap is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Bytes asked for.
    pub need: u64,
    /// Bytes left under the cap.
    pub have: u64,
    /// The cap, bytes.
    pub cap: u64,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (need, have, cap) = (ByteSize(self.need), ByteSize(self.have), ByteSize(self.cap));
        write!(f, "it needs {need} more, {have} of the volume's {cap} are left: ask for a larger --size")
    }
}
