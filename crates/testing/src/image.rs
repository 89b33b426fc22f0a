//! Complete images built in code from layers, with config, manifest and index, which can be pushed to any
//! registry.
//!
//! ```
//! use larder_testing::image::{Format, Image, Layer};
//!
//! let image = Image::builder(Format::Oci).layer(Layer::new(vec![0; 1024], "tar", None)).build();
//! assert_eq!(image.layers.len(), 1);
//! ```

use std::io;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::layer::BuiltLayer;
use larder_model::digest::Digest;
use larder_model::platform::Platform;

mod files;

pub use files::{busybox, from_files};

/// Media type family: OCI image spec, or Docker image manifest version 2, schema 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/vnd.oci.image.…`
    Oci,
    /// `application/vnd.docker.…`
    Docker,
}

impl Format {
    /// Returns the media type of an image manifest.
    pub fn manifest(self) -> &'static str {
        match self {
            Format::Oci => "application/vnd.oci.image.manifest.v1+json",
            Format::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    /// Returns the media type of an index (OCI) or manifest list (Docker).
    pub fn index(self) -> &'static str {
        match self {
            Format::Oci => "application/vnd.oci.image.index.v1+json",
            Format::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    /// Returns the media type of a config.
    pub fn config(self) -> &'static str {
        match self {
            Format::Oci => "application/vnd.oci.image.config.v1+json",
            Format::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    /// Returns the media type of a layer. `suffix` is the end of OCI's name: `tar`, `tar+gzip` or `tar+zstd`.
    pub fn layer(self, suffix: &str) -> String {
        match (self, suffix) {
            (Format::Oci, _) => format!("application/vnd.oci.image.layer.v1.{suffix}"),
            (Format::Docker, "tar+gzip") => "application/vnd.docker.image.rootfs.diff.tar.gzip".into(),
            (Format::Docker, "tar+zstd") => "application/vnd.docker.image.rootfs.diff.tar.zstd".into(),
            (Format::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar".into(),
        }
    }
}

/// A layer as a registry serves it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Bytes that the registry serves.
    pub blob: Bytes,
    /// sha256 digest of `blob`.
    pub digest: Digest,
    /// sha256 digest of the tar inside.
    pub diff_id: Digest,
    /// Compression of the blob: `tar`, `tar+gzip` or `tar+zstd`.
    pub suffix: &'static str,
}

impl Layer {
    /// Creates a layer of `blob`. Without a `diff_id`, the blob is the tar itself.
    pub fn new(blob: impl Into<Bytes>, suffix: &'static str, diff_id: Option<Digest>) -> Self {
        let blob = blob.into();
        let digest = Digest::sha256(&blob);
        Layer { diff_id: diff_id.unwrap_or_else(|| digest.clone()), digest, blob, suffix }
    }
}

impl From<BuiltLayer> for Layer {
    fn from(built: BuiltLayer) -> Self {
        let suffix = match built.media_type.rsplit_once('.') {
            Some((_, "tar+gzip")) => "tar+gzip",
            Some((_, "tar+zstd")) => "tar+zstd",
            _ => "tar",
        };
        Layer { blob: built.blob.into(), digest: built.digest, diff_id: built.diff_id, suffix }
    }
}

/// A JSON document that is addressed by digest: a manifest, an index or a config.
#[derive(Clone, Debug)]
pub struct Document {
    /// Media type of the document.
    pub media_type: String,
    /// Bytes of the document.
    pub bytes: Bytes,
    /// sha256 digest of `bytes`.
    pub digest: Digest,
}

impl Document {
    /// Creates a document from `value`, without whitespace.
    pub fn new(media_type: &str, value: &Value) -> Self {
        let bytes = Bytes::from(value.to_string());
        Document { media_type: media_type.into(), digest: Digest::sha256(&bytes), bytes }
    }

    /// Returns the descriptor that points to this document.
    pub fn descriptor(&self) -> Value {
        descriptor(&self.media_type, &self.digest, self.bytes.len())
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

/// A registry to which an image can be pushed: a real one over HTTP, or one inside the test process.
pub trait Target {
    /// Stores a blob. Succeeds if the blob already exists.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses the blob.
    fn put_blob(&mut self, repository: &str, digest: &Digest, bytes: &Bytes) -> io::Result<()>;

    /// Stores a manifest or an index under a tag or its digest.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses the document.
    fn put_manifest(&mut self, repository: &str, reference: &str, document: &Document) -> io::Result<()>;
}

/// An image for one platform.
#[derive(Clone, Debug)]
pub struct Image {
    /// Layers of the image, base first.
    pub layers: Vec<Layer>,
    /// Config of the image.
    pub config: Document,
    /// Manifest of the image.
    pub manifest: Document,
    /// Platform in the config.
    pub platform: Platform,
}

impl Image {
    /// Starts an image without layers, for this host's platform.
    pub fn builder(format: Format) -> Builder {
        Builder {
            format,
            platform: Platform::host(),
            layers: Vec::new(),
            command: vec!["/bin/sh".into()],
            labels: json!({}),
        }
    }

    /// Returns the size of the distinct layers as the registry serves them, in bytes. The 3x rule counts this
    /// size.
    pub fn compressed_size(&self) -> usize {
        let mut blobs: Vec<_> = self.layers.iter().map(|l| (&l.digest, l.blob.len())).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs.iter().map(|(_, len)| len).sum()
    }

    /// Pushes blobs, config and manifest; the manifest under `tag`.
    ///
    /// # Errors
    /// The target fails to store one of them.
    pub fn push(&self, target: &mut dyn Target, repository: &str, tag: &str) -> io::Result<()> {
        for layer in &self.layers {
            target.put_blob(repository, &layer.digest, &layer.blob)?;
        }
        target.put_blob(repository, &self.config.digest, &self.config.bytes)?;
        target.put_manifest(repository, tag, &self.manifest)
    }
}

/// Parts of an [`Image`] that is not built yet.
#[derive(Clone, Debug)]
pub struct Builder {
    format: Format,
    platform: Platform,
    layers: Vec<Layer>,
    command: Vec<String>,
    labels: Value,
}

impl Builder {
    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Adds layers on top, in order.
    #[must_use]
    pub fn layers(mut self, layers: impl IntoIterator<Item = Layer>) -> Self {
        self.layers.extend(layers);
        self
    }

    /// Sets the platform of the image.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Sets the default command of a container.
    #[must_use]
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.into()).collect();
        self
    }

    /// Sets a label, which makes two images with the same layers differ.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels[name] = value.into();
        self
    }

    /// Builds config and manifest.
    pub fn build(self) -> Image {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let history: Vec<_> = (0..self.layers.len())
            .map(|n| json!({"created": CREATED, "created_by": format!("layer {n}")}))
            .collect();
        let mut config = json!({
            "created": CREATED,
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "config": {"Env": ["PATH=/bin:/usr/bin"], "Cmd": self.command, "Labels": self.labels},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        if !self.platform.variant.is_empty() {
            config["variant"] = self.platform.variant.as_str().into();
        }
        let config = Document::new(self.format.config(), &config);
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| descriptor(&self.format.layer(layer.suffix), &layer.digest, layer.blob.len()))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest(),
            "config": config.descriptor(),
            "layers": layers,
        });
        Image {
            manifest: Document::new(self.format.manifest(), &manifest),
            config,
            layers: self.layers,
            platform: self.platform,
        }
    }
}

const CREATED: &str = "2026-01-02T03:04:05Z";

/// Creates an index (OCI) or manifest list (Docker) of `images`, in order.
pub fn index(format: Format, images: &[&Image]) -> Document {
    let manifests: Vec<_> = images
        .iter()
        .map(|image| {
            let mut entry = image.manifest.descriptor();
            entry["platform"] = json!({"architecture": image.platform.architecture, "os": image.platform.os});
            if !image.platform.variant.is_empty() {
                entry["platform"]["variant"] = image.platform.variant.as_str().into();
            }
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": format.index(), "manifests": manifests});
    Document::new(format.index(), &index)
}

/// Pushes `images` by digest and an index of them under `tag`. Returns the index.
///
/// # Errors
/// The target fails to store one of them.
pub fn push_index(
    target: &mut dyn Target,
    format: Format,
    images: &[&Image],
    repository: &str,
    tag: &str,
) -> io::Result<Document> {
    for image in images {
        image.push(target, repository, &image.manifest.digest.to_string())?;
    }
    let index = index(format, images);
    target.put_manifest(repository, tag, &index)?;
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records what is pushed, in order.
    #[derive(Default)]
    struct Recorder(Vec<String>);

    impl Target for Recorder {
        fn put_blob(&mut self, repository: &str, digest: &Digest, bytes: &Bytes) -> io::Result<()> {
            assert_eq!(Digest::sha256(bytes), *digest);
            self.0.push(format!("{repository} blob {digest}"));
            Ok(())
        }

        fn put_manifest(&mut self, repository: &str, reference: &str, document: &Document) -> io::Result<()> {
            assert_eq!(Digest::sha256(&document.bytes), document.digest);
            self.0.push(format!("{repository} manifest {reference}"));
            Ok(())
        }
    }

    #[test]
    fn manifest_points_to_config_and_layers() {
        let layer = Layer::new(vec![0; 1024], "tar", None);
        let image = Image::builder(Format::Docker).layer(layer.clone()).build();
        let manifest: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], layer.digest.to_string());
        assert_eq!(manifest["layers"][0]["size"], 1024);
        assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.docker.image.rootfs.diff.tar");
        let config: Value = serde_json::from_slice(&image.config.bytes).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], layer.diff_id.to_string());
        assert_eq!(manifest["config"]["digest"], image.config.digest.to_string());
    }

    #[test]
    fn manifests_are_pushed_after_what_they_point_to() {
        let one = Image::builder(Format::Oci).layer(Layer::new(vec![0; 1024], "tar", None));
        let (one, two) = (one.clone().build(), one.label("n", "2").build());
        assert_ne!(one.manifest.digest, two.manifest.digest);
        let mut recorder = Recorder::default();
        push_index(&mut recorder, Format::Oci, &[&one, &two], "a/b", "1").unwrap();
        let kinds: Vec<_> = recorder.0.iter().map(|l| l.split(' ').nth(1).unwrap()).collect();
        assert_eq!(kinds, ["blob", "blob", "manifest", "blob", "blob", "manifest", "manifest"]);
        assert!(recorder.0[6].ends_with(" 1"));
    }
}
