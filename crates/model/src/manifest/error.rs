//! Why a manifest, index or config is refused.

use crate::class::Class;
use crate::digest::ParseDigestError;

/// A manifest, index or config is refused. What came from outside is cut, and escaped where it is printed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, a key twice in one object, or not of the shape that the specification gives.
    #[error("it is not what the OCI image spec asks for: {reason:?}")]
    Malformed {
        /// What the JSON reader found, with line and column.
        reason: String,
    },
    /// A field that the JSON reader of podman, CRI-O, containerd and docker refuses.
    #[error(
        "its field {field} cannot be read by podman, containerd and docker: {rule}; build the image again"
    )]
    Unreadable {
        /// The path of the field.
        field: String,
        /// What is there, and what belongs there.
        rule: String,
    },
    /// More than a limit allows.
    #[error("it has {have} {what}, the limit is {limit}")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How much there is.
        have: u64,
        /// How much is allowed.
        limit: u64,
    },
    /// A digest is not one.
    #[error(transparent)]
    Digest(#[from] ParseDigestError),
    /// A descriptor with a size below zero.
    #[error("the descriptor of {digest:?} has size {size}: sizes are not negative")]
    NegativeSize {
        /// Digest in the descriptor.
        digest: String,
        /// Size in the descriptor, bytes.
        size: i64,
    },
    /// Image and index at once: two readers would see two images (CVE-2021-41190).
    #[error(
        "it can be read as more than one kind of manifest (CVE-2021-41190): the publisher must push it again"
    )]
    Confused,
    /// Body and header name different types.
    #[error("its mediaType is {body:?}, but the registry sent Content-Type {header:?}: they must be equal")]
    MediaTypes {
        /// `mediaType` in the body.
        body: String,
        /// Content-Type of the response.
        header: String,
    },
    /// Neither layers nor manifests.
    #[error("it has neither layers nor manifests")]
    Empty,
    /// `schemaVersion` is not 2.
    #[error("its schemaVersion is {}, want 2", .given.map_or("absent".to_owned(), |v| v.to_string()))]
    SchemaVersion {
        /// Number found.
        given: Option<u64>,
    },
    /// Docker image manifest version 2, schema 1.
    #[error(
        "it is a Docker schema 1 manifest, which holds neither sizes nor diff IDs: push the image again with a \
         current docker, podman or buildkit"
    )]
    Schema1,
    /// An artifact (Helm chart, signature, model …) or a document of another type.
    #[error("it is of type {media_type:?}, which is not a container image: name an image")]
    NotAnImage {
        /// The type found.
        media_type: String,
    },
    /// An image with nothing in it.
    #[error("the image has no layers: there is nothing to cache")]
    NoLayers,
    /// A layer of a type that nobody here can unpack.
    #[error(
        "a layer is of type {media_type:?}: want a tar, plain or compressed by gzip or zstd; build the image again \
         with one of these"
    )]
    UnknownLayer {
        /// The type found.
        media_type: String,
    },
    /// An encrypted layer (ocicrypt).
    #[error(
        "a layer of type {media_type:?} is encrypted, and Larder holds no keys: push the image unencrypted"
    )]
    EncryptedLayer {
        /// The type found.
        media_type: String,
    },
    /// The config lists another number of layers than the manifest.
    #[error("the config has {diff_ids} diff IDs, the manifest {layers} layers: they must be as many")]
    LayerCount {
        /// Diff IDs in the config.
        diff_ids: usize,
        /// Layers in the manifest.
        layers: usize,
    },
    /// No entry of an index runs on the platform asked for.
    #[error("there is no image for {want}, only for {}", list(.offered))]
    NoPlatform {
        /// Platform asked for.
        want: String,
        /// Platforms in the index, in its order.
        offered: Vec<String>,
    },
}

impl ManifestError {
    /// The class that decides exit code and retry.
    pub fn class(&self) -> Class {
        match self {
            ManifestError::Malformed { .. }
            | ManifestError::Unreadable { .. }
            | ManifestError::TooLarge { .. }
            | ManifestError::Digest(_)
            | ManifestError::NegativeSize { .. }
            | ManifestError::Confused
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

/// At most this many platforms are told; an index may offer thousands.
const MAX_TOLD: usize = 20;

fn list(offered: &[String]) -> String {
    let told = offered[..offered.len().min(MAX_TOLD)].join(", ");
    match offered.len().saturating_sub(MAX_TOLD) {
        _ if offered.is_empty() => "none at all".to_owned(),
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

/// Text from outside, cut to a length that a message can carry.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Refuses `have` above `limit`.
pub(super) fn at_most(what: &'static str, have: u64, limit: usize) -> Result<(), ManifestError> {
    let limit = limit as u64;
    if have > limit {
        return Err(ManifestError::TooLarge { what, have, limit });
    }
    Ok(())
}
