//! Manifests, indexes and configs (OCI image spec; Docker schema 2), validated and reduced to the fields that
//! a build needs.
//!
//! The JSON types are Larder's own. Those of `oci-client` accept a document that is both an image and an
//! index as an image (CVE-2021-41190) and include an HTTP client. Those of `oci-spec` do not report which
//! digest or size is wrong.

mod config;
mod error;
mod go;
mod index;
mod json;
mod media_type;
mod process;
mod shapes;
mod wire;

pub use config::ImageConfig;
pub use error::ManifestError;
pub use index::Index;
pub use media_type::{ACCEPT, LayerMediaType};
pub use process::Process;
pub use wire::WirePlatform;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::digest::Digest;
use super::platform::Platform;
use media_type::Kind;
use wire::{WireDescriptor, WireManifest};

/// Maximum size of a manifest, index or config, bytes (the limit of containerd and containers/image).
pub const MAX_BYTES: usize = 4 << 20;

/// Maximum number of entries of an index.
pub const MAX_DESCRIPTORS: usize = 10_000;

/// Maximum number of layers of an image: the limit of overlayfs (`OVL_MAX_STACK`), and so of every runtime.
pub const MAX_LAYERS: usize = 500;

/// Parses a small JSON document of an archive: at most [`MAX_BYTES`], and no duplicate keys in an object.
/// Unknown members are ignored.
///
/// # Errors
/// Returns a [`ManifestError`] of class Corrupt if the document is not valid.
pub fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ManifestError> {
    json::check(bytes)?;
    json::read(bytes)
}

/// A pointer to content (OCI image spec, descriptor.md) with a valid digest and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type as given.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content, bytes.
    pub size: u64,
    /// Alternative locations of the content outside the registry (`urls`).
    pub urls: Vec<String>,
    /// Platform of the referenced manifest; only in an index.
    pub platform: Option<Platform>,
}

impl Descriptor {
    fn new(media_type: String, digest: &str, size: i64) -> Result<Self, ManifestError> {
        Ok(Descriptor {
            digest: digest.parse()?,
            size: u64::try_from(size)
                .map_err(|_| ManifestError::NegativeSize { digest: error::truncate(digest), size })?,
            media_type,
            urls: Vec::new(),
            platform: None,
        })
    }
}

impl TryFrom<WireDescriptor> for Descriptor {
    type Error = ManifestError;

    fn try_from(wire: WireDescriptor) -> Result<Self, Self::Error> {
        let descriptor = Descriptor::new(wire.media_type, &wire.digest, wire.size)?;
        Ok(Descriptor { urls: wire.urls.unwrap_or_default(), ..descriptor })
    }
}

/// A response of a registry to a request for a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An index (OCI) or manifest list (Docker).
    Index(Index),
    /// The manifest of one image.
    Image(Manifest),
}

/// The manifest of one image (OCI image spec, manifest.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Media type: the `mediaType` of the body, or the Content-Type, or the OCI type.
    pub media_type: String,
    /// Descriptor of the config; its media type is one of the two image configs.
    pub config: Descriptor,
    /// Layers, base first; at least one, each with a media type that [`LayerMediaType`] supports.
    pub layers: Vec<Descriptor>,
}

/// The members that determine the kind of document. Only their presence matters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Document {
    /// Parses a manifest or index and checks everything that needs no further request.
    ///
    /// `content_type` is the value of the response header. The caller must have verified the digest of
    /// `bytes`.
    ///
    /// # Errors
    /// Returns a [`ManifestError`] for corrupt content: malformed, an image and an index at once, media types
    /// that disagree, limits exceeded. Also returns one for content that Larder does not support: Docker
    /// schema 1, artifacts, unknown or encrypted layers, an image without layers.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        json::check(bytes)?;
        let shape: Shape = json::read(bytes)?;
        let kind = shape.kind()?;
        let media_type = agreed_media_type(kind, shape.media_type, content_type)?;
        if shape.schema_version != Some(2) {
            return Err(ManifestError::SchemaVersion { given: shape.schema_version });
        }
        Ok(match kind {
            Kind::Image => Document::Image(Manifest::read(bytes, media_type)?),
            Kind::Index => Document::Index(Index::read(bytes, media_type)?),
        })
    }
}

impl Shape {
    fn kind(&self) -> Result<Kind, ManifestError> {
        let image = self.layers.is_some() || self.config.is_some();
        let kinds = [self.fs_layers.is_some(), image, self.manifests.is_some()];
        match kinds {
            [false, true, false] if self.schema_version != Some(1) => Ok(Kind::Image),
            [false, false, true] if self.schema_version != Some(1) => Ok(Kind::Index),
            [true, false, false] => Err(ManifestError::Schema1),
            [false, false, false] if self.schema_version != Some(1) => Err(ManifestError::Empty),
            [false, _, _] if self.schema_version == Some(1) => Err(ManifestError::Schema1),
            _ => Err(ManifestError::Ambiguous),
        }
    }
}

/// Returns the media type on which body, header and structure agree.
fn agreed_media_type(
    kind: Kind,
    body: Option<String>,
    header: Option<&str>,
) -> Result<String, ManifestError> {
    let header = header.map(media_type::without_parameters);
    if let (Some(body), Some(header)) = (&body, &header)
        && body != header
    {
        return Err(ManifestError::MediaTypes {
            body: error::truncate(body),
            header: error::truncate(header),
        });
    }
    let Some(media_type) = body.or(header) else {
        return Ok(kind.oci_media_type().to_owned());
    };
    match Kind::of(&media_type) {
        Some(named) if named == kind => Ok(media_type),
        Some(_) => Err(ManifestError::Ambiguous),
        None if media_type::is_schema_1(&media_type) => Err(ManifestError::Schema1),
        None => Err(ManifestError::NotAnImage { media_type: error::truncate(&media_type) }),
    }
}

impl Manifest {
    fn read(bytes: &[u8], media_type: String) -> Result<Self, ManifestError> {
        let seen_by_go = go::read(bytes, &shapes::MANIFEST)?;
        let wire: WireManifest = json::read(bytes)?;
        let digest =
            |object: Option<&go::Object>| object.map_or(String::new(), |o| o.text("digest").to_owned());
        let layers = wire.layers.iter().map(|layer| layer.digest.clone());
        // A duplicate key in another case: runtimes would use other content than this parser.
        if !seen_by_go.objects("layers").map(digest).eq(layers)
            || digest(seen_by_go.object("config")) != wire.config.digest
        {
            return Err(ManifestError::Ambiguous);
        }
        if !media_type::is_image_config(&wire.config.media_type) {
            return Err(ManifestError::NotAnImage { media_type: error::truncate(&wire.config.media_type) });
        }
        if wire.layers.is_empty() {
            return Err(ManifestError::NoLayers);
        }
        error::check_max("layers", wire.layers.len() as u64, MAX_LAYERS)?;
        let config: Descriptor = wire.config.try_into()?;
        error::check_max("bytes of config", config.size, MAX_BYTES)?;
        let mut layers = Vec::with_capacity(wire.layers.len());
        for layer in wire.layers {
            layer.media_type.parse::<LayerMediaType>()?;
            layers.push(Descriptor::try_from(layer)?);
        }
        Ok(Manifest { media_type, config, layers })
    }
}

#[cfg(test)]
mod tests;
