//! The errors for manifests, indexes and configs.

use crate::class::Class;
use crate::digest::ParseDigestError;

/// The error for a manifest, index or config that is not accepted. Untrusted text is truncated here, and
/// escaped when printed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The document is not JSON, has a duplicate key in an object, or does not match the specification.
    #[error("it does not match the OCI image spec: {reason:?}")]
    Malformed {
        /// Message of the JSON parser, with line and column.
        reason: String,
    },
    /// A field that the JSON parser of podman, CRI-O, containerd and docker refuses.
    #[error("podman, containerd and docker cannot read its field {field}: {rule}; build the image again")]
    Unreadable {
        /// Path of the field in the document.
        field: String,
        /// Found and expected value.
        rule: String,
    },
    /// A number that exceeds a limit.
    #[error("it has {have} {what}, but the limit is {limit}")]
    TooLarge {
        /// Unit of the number, in the plural.
        what: &'static str,
        /// Actual number, in the unit `what`.
        have: u64,
        /// Maximum number, in the unit `what`.
        limit: u64,
    },
    /// A digest is malformed.
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
    /// A descriptor has a negative size.
    #[error("the descriptor of {digest:?} has the negative size {size}")]
    NegativeSize {
        /// Digest in the descriptor.
        digest: String,
        /// Size in the descriptor, bytes.
        size: i64,
    },
    /// The document is an image and an index at once, so two parsers could use different images
    /// (CVE-2021-41190).
    #[error("it can be read as more than one kind of manifest (CVE-2021-41190): push the image again")]
    Ambiguous,
    /// Body and header have different media types.
    #[error(
        "its mediaType is {body:?}, but the registry sent Content-Type {header:?}: they must be the same"
    )]
    MediaTypes {
        /// Value of `mediaType` in the body.
        body: String,
        /// Value of Content-Type in the response.
        header: String,
    },
    /// The document has neither layers nor manifests.
    #[error("it has neither layers nor manifests")]
    Empty,
    /// The value of `schemaVersion` is not 2.
    #[error("its schemaVersion is {}, want 2", .given.map_or("absent".to_owned(), |v| v.to_string()))]
    SchemaVersion {
        /// Value of `schemaVersion`, if present.
        given: Option<u64>,
    },
    /// The document is a Docker image manifest version 2, schema 1.
    #[error(
        "it is a Docker schema 1 manifest, which has neither sizes nor diff IDs: push the image again with a \
         current docker, podman or buildkit"
    )]
    Schema1,
    /// The document is an artifact (Helm chart, signature, model …) or has another media type.
    #[error("it is of type {media_type:?}, which is not a container image: give the reference of an image")]
    NotAnImage {
        /// Media type of the document.
        media_type: String,
    },
    /// The image has no layers.
    #[error("the image has no layers: there is nothing to cache")]
    NoLayers,
    /// A layer has a media type that Larder cannot unpack.
    #[error(
        "a layer is of type {media_type:?}: want a tar, uncompressed or compressed with gzip or zstd; build the \
         image again in one of these formats"
    )]
    UnknownLayer {
        /// Media type of the layer.
        media_type: String,
    },
    /// A layer is encrypted (ocicrypt).
    #[error(
        "a layer of type {media_type:?} is encrypted, and Larder has no keys: push the image without encryption"
    )]
    EncryptedLayer {
        /// Media type of the layer.
        media_type: String,
    },
    /// The config and the manifest have different numbers of layers.
    #[error(
        "the config has {diff_ids} diff IDs, but the manifest has {layers} layers: the numbers must be the same"
    )]
    LayerCount {
        /// Number of diff IDs in the config.
        diff_ids: usize,
        /// Number of layers in the manifest.
        layers: usize,
    },
    /// No entry of the index runs on the requested platform.
    #[error("there is no image for {want}; available platforms: {}", list(.offered))]
    NoPlatform {
        /// The requested platform.
        want: String,
        /// Platforms of the index, in its order.
        offered: Vec<String>,
    },
}

impl ManifestError {
    /// Returns the class of the error, which determines exit code and retries.
    pub fn class(&self) -> Class {
        match self {
            ManifestError::Malformed { .. }
            | ManifestError::Unreadable { .. }
            | ManifestError::TooLarge { .. }
            | ManifestError::Digest(_)
            | ManifestError::NegativeSize { .. }
            | ManifestError::Ambiguous
            | ManifestError::MediaTypes { .. }
            | ManifestError::Empty
            | ManifestError::SchemaVersion { .. }
            | ManifestError::LayerCount { .. } => Class::Corrupt,
            ManifestError::Schema1
            | ManifestError::NotAnImage { .. }
            | ManifestError::NoLayers
            | ManifestError::UnknownLayer { .. }
            | ManifestError::EncryptedLayer { .. } => Class::Invalid,
            ManifestError::NoPlatform { .. } => Class::NotFound,
        }
    }
}

/// Maximum number of platforms in the message; an index can have thousands.
const MAX_LISTED: usize = 20;

fn list(offered: &[String]) -> String {
    let listed = offered[..offered.len().min(MAX_LISTED)].join(", ");
    match offered.len().saturating_sub(MAX_LISTED) {
        _ if offered.is_empty() => "none".to_owned(),
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

/// Truncates untrusted text to a length that is suitable for a message.
pub(super) fn truncate(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Returns an error if `have` is greater than `limit`.
pub(super) fn check_max(what: &'static str, have: u64, limit: usize) -> Result<(), ManifestError> {
    let limit = limit as u64;
    if have > limit {
        return Err(ManifestError::TooLarge { what, have, limit });
    }
    Ok(())
}
