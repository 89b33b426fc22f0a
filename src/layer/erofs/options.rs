//! What an image is called, and what writing it may take.

use super::error::Error;

/// What the writer is told about an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// Identity of the file system. Derived from what the image holds, so that the same content gives the same bytes.
    pub uuid: [u8; 16],
    /// Name of the file system.
    pub label: Label,
    /// Bytes of memory that entries may take until the end. Default 1 GiB, some six million entries.
    pub max_memory: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { uuid: [0; 16], label: Label::default(), max_memory: 1 << 30 }
    }
}

/// The name of a file system: at most 15 bytes, for older kernels want a NUL after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label([u8; 16]);

impl Label {
    /// Longest label, bytes.
    pub const MAX: usize = 15;

    /// Takes a label.
    ///
    /// # Errors
    /// [`Error::Label`] where it is too long or holds a NUL byte.
    pub fn new(label: &str) -> Result<Self, Error> {
        if label.len() > Self::MAX || label.contains('\0') {
            return Err(Error::Label);
        }
        let mut bytes = [0; 16];
        bytes[..label.len()].copy_from_slice(label.as_bytes());
        Ok(Label(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}
