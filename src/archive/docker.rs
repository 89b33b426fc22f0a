//! The `manifest.json` of `docker save`: configs and layers by path, without manifests.
//!
//! A manifest is generated for each image, in the form that docker pushes. The digest of an uncompressed
//! layer is its diff ID from the config. A compressed layer must be read to compute its digest.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::error::Error;
use super::store::Blob;
use super::{Archive, Digest, Entry};
use larder_layer::decode::ChunkSource as _;
use larder_layer::path;
use larder_model::digest::{Algorithm, Hasher};
use larder_model::io_error::IoError;
use larder_model::manifest::{ImageConfig, ManifestError, read_json};
use larder_model::reference::ImageReference;
use larder_model::seal::Compression;

const LIST: &str = "manifest.json";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Maximum size of the list and of a config, bytes.
const MAX_DOCUMENT: u64 = 4 << 20;

/// Maximum number of images in an archive; a config is read for each.
const MAX_IMAGES: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// A layer as stored in the archive.
#[derive(Clone)]
struct Layer {
    media_type: String,
    size: u64,
    /// `None` if it equals the diff ID.
    digest: Option<Digest>,
}

/// Reads the list and generates manifests for images that the archive does not list yet. An image without a
/// name counts only if no other image is listed. Archives of docker 25 and later are also OCI layouts, whose
/// index can list fewer images, or none.
pub(super) fn read(archive: &mut Archive) -> Result<(), Error> {
    let list = archive.store.read(LIST, MAX_DOCUMENT)?;
    let list: Vec<Image> =
        read_json(&list).map_err(|source| Error::Document { file: LIST.to_owned(), source })?;
    if list.len() > MAX_IMAGES {
        let reason = format!("{} images are listed, the limit is {MAX_IMAGES}", list.len());
        return Err(Error::Malformed { file: LIST.to_owned(), reason });
    }
    let listed = archive.names();
    let is_empty = archive.entries.is_empty();
    let mut layers: HashMap<String, Layer> = HashMap::new();
    for image in list {
        let mut tags: Vec<ImageReference> =
            image.repo_tags.iter().flatten().filter_map(|tag| tag.parse().ok()).collect();
        tags.retain(|tag| !listed.contains(tag));
        if tags.is_empty() && !is_empty {
            continue;
        }
        let (digest, manifest) = manifest(archive, &image, &mut layers)?;
        let size = manifest.len() as u64;
        let entry = |name| {
            let media_type = MANIFEST.to_owned();
            Entry { name, media_type, digest: digest.clone(), size, platform: None }
        };
        match tags.is_empty() {
            true => archive.entries.push(entry(None)),
            false => archive.entries.extend(tags.into_iter().map(|tag| entry(Some(tag)))),
        }
        archive.generated.insert(digest, manifest);
    }
    Ok(())
}

fn manifest(
    archive: &mut Archive,
    image: &Image,
    layers: &mut HashMap<String, Layer>,
) -> Result<(Digest, Vec<u8>), Error> {
    let bytes = archive.store.read(&image.config, MAX_DOCUMENT)?;
    let digest = Digest::sha256(&bytes);
    check_name(&image.config, &digest)?;
    let document = |source| Error::Document { file: image.config.clone(), source };
    let config = ImageConfig::parse(&bytes).map_err(document)?;
    if config.diff_ids.len() != image.layers.len() {
        let (diff_ids, layers) = (config.diff_ids.len(), image.layers.len());
        return Err(document(ManifestError::LayerCount { diff_ids, layers }));
    }
    let mut descriptors = Vec::with_capacity(image.layers.len());
    for (path, diff_id) in image.layers.iter().zip(&config.diff_ids) {
        let layer = match layers.get(path) {
            Some(layer) => layer.clone(),
            None => {
                let found = layer(archive, path)?;
                layers.insert(path.clone(), found.clone());
                found
            }
        };
        let digest = layer.digest.unwrap_or_else(|| diff_id.clone());
        descriptors.push(json!({"mediaType": layer.media_type, "digest": digest, "size": layer.size}));
        archive.paths.entry(digest).or_insert_with(|| path.clone());
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest, "size": bytes.len()},
        "layers": descriptors,
    });
    archive.paths.insert(digest, image.config.clone());
    let manifest = manifest.to_string().into_bytes();
    Ok((Digest::sha256(&manifest), manifest))
}

/// Checks the name of the config: if it is a digest, it must be the digest of the content.
fn check_name(path: &str, digest: &Digest) -> Result<(), Error> {
    let (_, name) = path::split(path.as_bytes());
    let stem = name.strip_suffix(b".json").unwrap_or(name);
    let is_digest = stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit);
    if !is_digest || stem == digest.hex().as_bytes() {
        return Ok(());
    }
    Err(Error::Malformed { file: path.to_owned(), reason: format!("the digest of its content is {digest}") })
}

fn layer(archive: &Archive, path: &str) -> Result<Layer, Error> {
    let missing = || Error::Malformed { file: path.to_owned(), reason: "missing".to_owned() };
    let blob = archive.store.open(path)?.ok_or_else(missing)?;
    let size = blob.size();
    let compression = Compression::detect(&blob.start::<4>()?);
    let suffix = match compression {
        Compression::None => "",
        Compression::Gzip => ".gzip",
        Compression::Zstd => ".zstd",
    };
    let digest = if compression == Compression::None { None } else { Some(digest(blob, path)?) };
    Ok(Layer { media_type: format!("{LAYER}{suffix}"), size, digest })
}

fn digest(mut blob: Blob, path: &str) -> Result<Digest, Error> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let failed = |source| IoError::new("reading", path, source);
    while let Some(chunk) = blob.next().map_err(failed)? {
        hasher.update(&chunk);
    }
    Ok(hasher.finish())
}
