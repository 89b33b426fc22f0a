//! The index files of a volume: a containers/storage image store, an OCI image layout and a list of
//! snapshots. They are derived from the content of `cache.json` and the documents of the registry. There is
//! no I/O, so that `verify` can compute them again.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::job::LayerFormat;
use larder_model::reference::ImageReference;
use larder_model::seal::{Compression, Content, Image};

/// The documents of one image, as received from the registry.
#[derive(Clone, Debug)]
pub struct Documents {
    /// Bytes of the manifest.
    pub manifest: Vec<u8>,
    /// Media type of the manifest.
    pub manifest_type: String,
    /// Bytes of the config.
    pub config: Vec<u8>,
    /// Creation time of the image from its config (RFC 3339).
    pub created: Option<String>,
    /// Bytes of the index that refers to the manifest, if any.
    pub index: Option<Vec<u8>>,
}

/// A file of the store: path relative to the root of the volume, and content.
pub type File = (String, Vec<u8>);

/// Creation time for images without one, because consumers require it.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Returns all index files of a volume except `cache.json`, in a fixed order. `documents` correspond to
/// `content.images`, in order.
///
/// # Errors
/// Those of JSON encoding.
pub fn files(content: &Content, documents: &[Documents]) -> Result<Vec<File>, serde_json::Error> {
    let mut files = Vec::new();
    // Stores and snapshotters need layer directories.
    if content.layer_format == LayerFormat::Overlay {
        files.push(("snapshots.metadata".to_owned(), snapshots(content)));
        files.extend(image_store(content, documents, &|chain_id| chain_id.hex())?);
    }
    files.extend(oci(content, documents)?);
    Ok(files)
}

/// Returns the records of layers and images of a containers/storage image store, for any layer format. `id`
/// returns the name of a layer; the store accepts any name.
///
/// # Errors
/// Those of JSON encoding.
pub fn image_store<'a>(
    content: &'a Content,
    documents: &[Documents],
    id: &dyn Fn(&'a ChainId) -> &'a str,
) -> Result<Vec<File>, serde_json::Error> {
    let mut files = vec![layer_records(content, documents, id)?];
    files.extend(images(content, documents, id)?);
    Ok(files)
}

/// Returns the records of the layers only.
///
/// # Errors
/// Those of JSON encoding.
pub fn layer_records<'a>(
    content: &'a Content,
    documents: &[Documents],
    id: &dyn Fn(&'a ChainId) -> &'a str,
) -> Result<File, serde_json::Error> {
    Ok(("overlay-layers/layers.json".to_owned(), layers(content, documents, id)?))
}

/// Returns the names by which consumers look up an image.
pub fn names(image: &Image) -> Vec<String> {
    match image.name.parse::<ImageReference>() {
        // Given a tag and a digest, consumers look up the digest.
        Ok(reference) => match (reference.digest(), reference.tag()) {
            (Some(digest), _) => vec![format!("{}@{digest}", reference.name())],
            (None, Some(tag)) => vec![format!("{}:{tag}", reference.name())],
            (None, None) => vec![reference.name()],
        },
        Err(_) => vec![image.name.clone()],
    }
}

fn layers<'a>(
    content: &'a Content,
    documents: &[Documents],
    id: &dyn Fn(&'a ChainId) -> &'a str,
) -> Result<Vec<u8>, serde_json::Error> {
    let mut created: BTreeMap<&ChainId, &str> = BTreeMap::new();
    for (image, documents) in content.images.iter().zip(documents) {
        for chain_id in &image.chain {
            created.entry(chain_id).or_insert(documents.created.as_deref().unwrap_or(EPOCH));
        }
    }
    let entries: Vec<Value> = content
        .layers
        .iter()
        .map(|layer| {
            let mut entry = json!({
                "id": id(&layer.chain_id),
                "created": created.get(&layer.chain_id).copied().unwrap_or(EPOCH),
                "compressed-diff-digest": layer.blob,
                "compressed-size": layer.compressed_size,
                "diff-digest": layer.diff_id,
                "diff-size": layer.size,
                "compression": compression(layer.compression),
            });
            if let Some(parent) = &layer.parent {
                entry["parent"] = json!(id(parent));
            }
            entry
        })
        .collect();
    serde_json::to_vec(&entries)
}

/// Returns the numeric value of containers/storage (`pkg/archive`, type Compression).
fn compression(compression: Compression) -> u8 {
    match compression {
        Compression::None => 0,
        Compression::Gzip => 2,
        Compression::Zstd => 4,
    }
}

fn snapshots(content: &Content) -> Vec<u8> {
    let lines = content
        .layers
        .iter()
        .map(|layer| format!("{0} overlay/{1}/diff\n", layer.chain_id, layer.chain_id.hex()));
    lines.collect::<String>().into_bytes()
}

/// Creates one record per config digest, which is the image ID. Manifests with the same config share a
/// record.
fn images<'a>(
    content: &'a Content,
    documents: &[Documents],
    id: &dyn Fn(&'a ChainId) -> &'a str,
) -> Result<Vec<File>, serde_json::Error> {
    let mut records: Vec<Value> = Vec::new();
    let mut files = Vec::new();
    let mut by_config: BTreeMap<&Digest, Vec<(&'a Image, &Documents)>> = BTreeMap::new();
    for (image, documents) in content.images.iter().zip(documents) {
        by_config.entry(&image.config).or_default().push((image, documents));
    }
    for (config, images) in by_config {
        let (first, first_documents) = images[0];
        let mut data: BTreeMap<String, &[u8]> = BTreeMap::new();
        data.insert("manifest".into(), &first_documents.manifest);
        data.insert(config.to_string(), &first_documents.config);
        let mut image_names: Vec<String> = Vec::new();
        for (image, documents) in &images {
            data.insert(format!("manifest-{}", image.manifest), &documents.manifest);
            for name in names(image) {
                if !image_names.contains(&name) {
                    image_names.push(name);
                }
            }
        }
        let sizes: BTreeMap<&str, usize> =
            data.iter().map(|(key, bytes)| (key.as_str(), bytes.len())).collect();
        let digests: BTreeMap<&str, Digest> =
            data.iter().map(|(key, bytes)| (key.as_str(), Digest::sha256(bytes))).collect();
        records.push(json!({
            "id": config.hex(),
            "digest": first.manifest,
            "names": image_names,
            "layer": first.chain.last().map(id),
            "created": first_documents.created.as_deref().unwrap_or(EPOCH),
            "big-data-names": data.keys().collect::<Vec<_>>(),
            "big-data-sizes": sizes,
            "big-data-digests": digests,
        }));
        for (key, bytes) in &data {
            files.push((format!("overlay-images/{}/{}", config.hex(), big_data_name(key)), bytes.to_vec()));
        }
    }
    files.push(("overlay-images/images.json".to_owned(), serde_json::to_vec(&records)?));
    Ok(files)
}

/// Returns the file name of a big-data item: alphanumeric keys unchanged, others as `=` and base64
/// (containers/storage, `images.go`).
fn big_data_name(key: &str) -> String {
    if key.bytes().all(|b| b.is_ascii_alphanumeric()) {
        key.to_owned()
    } else {
        format!("={}", STANDARD.encode(key))
    }
}

/// Creates a layout without layer blobs. The index lists every image, so that its manifest and config can be
/// imported.
fn oci(content: &Content, documents: &[Documents]) -> Result<Vec<File>, serde_json::Error> {
    let mut files = vec![("oci/oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut manifests = Vec::new();
    let mut blobs: BTreeMap<String, &[u8]> = BTreeMap::new();
    for (image, documents) in content.images.iter().zip(documents) {
        for name in names(image) {
            manifests.push(json!({
                "mediaType": documents.manifest_type,
                "digest": image.manifest,
                "size": documents.manifest.len(),
                "platform": {"architecture": image.platform.architecture, "os": image.platform.os},
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": name,
                },
            }));
        }
        blobs.insert(blob_path(&image.manifest), &documents.manifest);
        blobs.insert(blob_path(&image.config), &documents.config);
        if let (Some(digest), Some(index)) = (&image.index, &documents.index) {
            blobs.insert(blob_path(digest), index);
        }
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    files.push(("oci/index.json".to_owned(), serde_json::to_vec(&index)?));
    files.extend(blobs.into_iter().map(|(path, bytes)| (path, bytes.to_vec())));
    Ok(files)
}

/// Returns the path of a document in the OCI layout.
pub fn blob_path(digest: &Digest) -> String {
    format!("oci/blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_big_data() {
        assert_eq!(big_data_name("manifest"), "manifest");
        assert_eq!(big_data_name("sha256:ab"), "=c2hhMjU2OmFi");
    }
}
