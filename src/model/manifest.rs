//! Manifests, indexes and configs (OCI image spec; Docker schema 2), reduced to what a build needs and checked.

use super::digest::Digest;
use super::platform::Platform;

/// A pointer to content (OCI image spec, descriptor.md), checked: digest well formed, size not negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type as written.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content, bytes.
    pub size: u64,
    /// Foreign locations (`urls`), where the content may be found beside the registry.
    pub urls: Vec<String>,
    /// Platform of the manifest pointed to; only in an index.
    pub platform: Option<Platform>,
}
