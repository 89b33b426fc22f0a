//! Options of an image: identity, label, and limits for writing it.

use super::error::Error;
use super::format::MAX_LABEL;
use larder_model::digest::Digest;

/// Options for writing an image.
#[derive(Clone, Debug)]
pub struct Options {
    /// UUID of the file system. It is derived from the content, so that the same content gives the same
    /// bytes.
    pub uuid: [u8; 16],
    /// Label of the file system.
    pub label: Label,
    /// `true` if a dm-verity hash tree follows the image.
    pub verity: bool,
    /// Maximum memory for entries until the image is finished, bytes. Default 1 GiB, about six million
    /// entries.
    pub max_memory: usize,
}

impl Options {
    /// Returns options for an image of the content with digest `of`. The UUID is the first half of the
    /// digest, as a custom UUID (RFC 9562, version 8).
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

/// The label of a file system: at most 15 bytes, because older kernels need a NUL after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label([u8; 16]);

impl Label {
    /// Maximum length of a label, bytes.
    pub const MAX: usize = MAX_LABEL;

    /// Creates a label from a string.
    ///
    /// # Errors
    /// [`Error::Label`] if it is too long or contains a NUL byte.
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
