//! Proves a sealed volume from its own bytes.

use std::path::Path;

use crate::model::class::Class;
use crate::model::digest::Digest;

/// What was proven.
#[derive(Clone, Debug)]
pub struct Report {
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Members of all tars.
    pub entries: u64,
    /// Bytes of all tars.
    pub bytes: u64,
    /// Digest of the content of `cache.json`.
    pub digest: Digest,
}

/// A volume cannot be verified.
#[derive(Debug, thiserror::Error)]
#[error("verification is not wired")]
pub struct Error;

impl Error {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        Class::Internal
    }
}

/// Verifies the volume at `path`.
pub fn verify(_path: &Path) -> Result<Report, Error> {
    Err(Error)
}
