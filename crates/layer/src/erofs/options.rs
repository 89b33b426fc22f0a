//! What an image is called, and what writing it may take.

use super::error::Error;
use larder_model::digest::Digest;

/// What the writer is told about an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// Identity of the file system. Derived from what the image holds, so that the same content gives the same bytes.
    pub uuid: [u8; 16],
    /// Name of the file system.
    pub label: Label,
    /// Whether a dm-verity hash tree follows the image.
    pub verity: bool,
    /// Bytes of memory that entries may take until the end. Default 1 GiB, some six million entries.
    pub max_memory: usize,
}

impl Options {
    /// Of the image of what has the digest `of`: the first half of that as a UUID of one's own making (RFC 9562, version 8).
    pub fn of(of: &Digest) -> Self {
        let half: String = of.hex().chars().take(32).collect();
        let bits = u128::from_str_radix(&half, 16).unwrap_or_default();
        let uuid = uuid::Builder::from_custom_bytes(bits.to_be_bytes()).into_uuid().into_bytes();
        Options { uuid, ..Options::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Options { uuid: [0; 16], label: Label::default(), verity: false, max_memory: 1 << 30 }
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
