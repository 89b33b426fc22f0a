//! Read access to a sealed volume. Its contents are not trusted: documents and layers are verified by their
//! digests.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

use super::Error;
use crate::trees;
use crate::volume::lease::Lease;
use crate::volume::{self, layout, store};
use larder_layer::rebuild::Rebuilt;
use larder_model::chain::ChainId;
use larder_model::digest::{Digest, Hasher};
use larder_model::io_error::{Context as _, IoError};
use larder_model::manifest::{self, Document, ImageConfig, Manifest};
use larder_model::reference::ImageReference;
use larder_model::seal::{CacheManifest, Image, Layer};
use larder_sys::Dir;
use larder_sys::dir::forgery;

/// Maximum size of a manifest or config, bytes.
const MAX_DOCUMENT: u64 = manifest::MAX_BYTES as u64;

/// An open volume. It cannot be removed while this value exists.
#[derive(Debug)]
pub(super) struct Cache {
    root: Dir,
    sealed: CacheManifest,
    layers: HashMap<ChainId, usize>,
    _lease: Option<Lease>,
}

/// The documents of an image, verified by their digests.
#[derive(Debug)]
pub(super) struct Documents {
    /// Bytes of the manifest.
    pub(super) manifest_bytes: Vec<u8>,
    /// The parsed manifest of the registry.
    pub(super) manifest: Manifest,
    /// Bytes of the config.
    pub(super) config: Vec<u8>,
    /// Diff IDs of the layers, base first.
    pub(super) diff_ids: Vec<Digest>,
}

impl Cache {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let shown = || path.display().to_string();
        let root = Dir::open(path).context("opening the volume", shown())?;
        let sealed = volume::seal::read(path)?;
        if !sealed.content.tar_split {
            return Err(Error::NoTarSplit { path: shown() });
        }
        // A copy of a volume can lack the `.larder` directory. Then no process can hold a lease on it.
        let _lease = match root.try_stat(layout::LARDER).context("examining", ".larder")? {
            Some(_) => Some(Lease::shared(&root)?.ok_or_else(|| Error::BeingRemoved { path: shown() })?),
            None => None,
        };
        let layers = sealed.content.layers.iter().enumerate();
        let layers = layers.map(|(at, layer)| (layer.chain_id.clone(), at)).collect();
        Ok(Cache { root, sealed, layers, _lease })
    }

    /// Returns the images with the `wanted` names, or all images if `wanted` is empty, in the order of the
    /// volume.
    pub(super) fn choose(&self, wanted: &[ImageReference]) -> Result<Vec<&Image>, Error> {
        let images = &self.sealed.content.images;
        let is = |image: &Image, reference: &ImageReference| {
            image.reference == reference.given() || image.name == reference.to_string()
        };
        if let Some(absent) = wanted.iter().find(|reference| !images.iter().any(|image| is(image, reference)))
        {
            let have: Vec<&str> = images.iter().map(|image| image.reference.as_str()).collect();
            return Err(Error::NoImage { reference: absent.given().to_owned(), have: have.join(", ") });
        }
        let chosen =
            |image: &&Image| wanted.is_empty() || wanted.iter().any(|reference| is(image, reference));
        Ok(images.iter().filter(chosen).collect())
    }

    /// Returns the total size of these images' tars in bytes, counting each change set once.
    pub(super) fn bytes(&self, images: &[&Image]) -> u64 {
        let mut seen = HashSet::new();
        let layers = images.iter().flat_map(|image| &image.chain).filter_map(|id| self.get(id));
        layers.filter(|layer| seen.insert(&layer.diff_id)).map(|layer| layer.size).sum()
    }

    /// Reads the manifest and config of an image, and checks that they agree with the seal.
    pub(super) fn documents(&self, image: &Image) -> Result<Documents, Error> {
        let contradiction = |what: String| Error::Contradiction { what };
        let manifest_bytes = self.document(&image.manifest)?;
        let config = self.document(&image.config)?;
        let manifest = match Document::parse(&manifest_bytes, None) {
            Ok(Document::Image(manifest)) if manifest.config.digest == image.config => manifest,
            _ => {
                return Err(contradiction(format!(
                    "{} is not a manifest of {}",
                    image.manifest, image.reference
                )));
            }
        };
        let parsed = ImageConfig::parse(&config)
            .and_then(|parsed| parsed.check_layers(&manifest).map(|()| parsed))
            .map_err(|e| contradiction(format!("the config {} of {}: {e}", image.config, image.reference)))?;
        if ChainId::chain(&parsed.diff_ids) != image.chain {
            return Err(contradiction(format!("the layers of {} differ", image.reference)));
        }
        Ok(Documents { manifest_bytes, manifest, config, diff_ids: parsed.diff_ids })
    }

    fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = store::blob_path(digest);
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let opened = self.root.open_beneath(dir.as_bytes());
        let bytes = opened.and_then(|dir| dir.read_file(name.as_bytes(), MAX_DOCUMENT));
        let bytes = bytes.map_err(|e| missing(e, "reading", path.clone()))?;
        if Hasher::digest_of(digest.algorithm(), &bytes) != *digest {
            return Err(Error::Contradiction { what: format!("{path} was changed") });
        }
        Ok(bytes)
    }

    fn get(&self, id: &ChainId) -> Option<&Layer> {
        self.layers.get(id).and_then(|at| self.sealed.content.layers.get(*at))
    }

    /// Returns the record of the layer `id`, and checks that it has `diff_id`.
    pub(super) fn layer(&self, id: &ChainId, diff_id: &Digest) -> Result<&Layer, Error> {
        let layer = self.get(id).filter(|layer| layer.diff_id == *diff_id);
        layer.ok_or_else(|| Error::Contradiction {
            what: format!("it contains no layer {id} with diff ID {diff_id}"),
        })
    }

    /// Opens the tar of a layer. The caller verifies its content.
    pub(super) fn tar(&self, layer: &Layer) -> Result<Rebuilt, Error> {
        trees::tar(&self.root, self.sealed.content.layer_format, layer).map_err(|e| match e.source.kind() {
            io::ErrorKind::InvalidData => Error::Contradiction { what: e.to_string() },
            _ => missing(e.source, "opening", e.path),
        })
    }
}

/// Converts an error of reading the volume. A missing file, a link or a special file means that the volume
/// was changed.
fn missing(error: io::Error, doing: &'static str, what: String) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        return Error::Contradiction { what: format!("{what} is missing") };
    }
    if let Some(fault) = forgery(&error) {
        return Error::Contradiction { what: format!("{what} {fault}") };
    }
    IoError::new(doing, what, error).into()
}
