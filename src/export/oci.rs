//! OCI image layouts (OCI image spec, image-layout.md).
//!
//! An archive also contains docker's list of images, which refers to the same blobs, as archives of docker
//! and ctr do. podman reads archives with several images only through that list, and docker before 25
//! supports nothing else.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::cache::{Cache, Documents};
use super::compress::{self, Written};
use super::layer::{rebuild, rebuild_into};
use super::target::{FileInfo, Target};
use super::{Error, Exported, Monitor, docker, names};
use larder_model::chain::ChainId;
use larder_model::digest::{Algorithm, Digest};
use larder_model::seal::{Compression, Image};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Writes the layout of `images`.
pub(super) fn write(
    cache: &Cache,
    images: &[&Image],
    compression: Compression,
    with_docker_list: bool,
    target: &mut dyn Target,
    monitor: &Monitor,
) -> Result<Vec<Exported>, Error> {
    begin(target)?;
    let mut writer =
        Writer { cache, compression, target, monitor, layers: HashMap::new(), present: HashSet::new() };
    let (mut entries, mut docker_list) = (Vec::new(), docker::List::default());
    let mut exported = Vec::new();
    let mut given: HashSet<String> = HashSet::new();
    for image in images {
        let documents = cache.documents(image)?;
        let layers = writer.layers(image, &documents)?;
        let config = Digest::sha256(&documents.config);
        writer.document(&config, &documents.config)?;
        let bytes = manifest(image, &documents, &config, &layers, compression)?;
        let digest = Digest::sha256(&bytes);
        writer.document(&digest, &bytes)?;
        let mut name = names::full(image, &digest)?;
        if !given.insert(name.clone()) {
            // For example `app:1` and `app:1@sha256:…`: the first image keeps the tag.
            let (repository, _) = name.rsplit_once(':').unwrap_or((&name, ""));
            name = format!("{repository}@{digest}");
        }
        docker_list.add(image, path(&config), layers.iter().map(|layer| path(&layer.digest)))?;
        entries.push(entry(image, &name, &digest, bytes.len()));
        let reference = image.reference.clone();
        exported.push(Exported { reference, name: Some(name), manifest: Some(digest), config });
    }
    end(target, &entries)?;
    if with_docker_list {
        target.file(docker::LIST, &docker_list.to_json()?)?;
    }
    Ok(exported)
}

/// Writes the entries that precede the blobs.
pub(super) fn begin(target: &mut dyn Target) -> Result<(), Error> {
    target.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    target.directory("blobs")?;
    target.directory("blobs/sha256")
}

/// Writes the index of the layout, which follows the blobs.
pub(super) fn end(target: &mut dyn Target, entries: &[Value]) -> Result<(), Error> {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries});
    target.file("index.json", &to_json("index.json", &index)?)
}

struct Writer<'a> {
    cache: &'a Cache,
    compression: Compression,
    target: &'a mut dyn Target,
    monitor: &'a Monitor,
    /// Blobs of the layers written so far, by diff ID.
    layers: HashMap<Digest, Written>,
    /// Digests of all blobs written so far.
    present: HashSet<Digest>,
}

impl Writer<'_> {
    /// Writes the layers of an image that were not written yet, and returns the blobs of all its layers.
    fn layers(&mut self, image: &Image, documents: &Documents) -> Result<Vec<Written>, Error> {
        let mut blobs = Vec::with_capacity(image.chain.len());
        for (chain_id, diff_id) in image.chain.iter().zip(&documents.diff_ids) {
            let blob = match self.layers.get(diff_id) {
                Some(blob) => blob.clone(),
                None => self.layer(chain_id, diff_id)?,
            };
            self.layers.insert(diff_id.clone(), blob.clone());
            blobs.push(blob);
        }
        Ok(blobs)
    }

    fn layer(&mut self, chain_id: &ChainId, diff_id: &Digest) -> Result<Written, Error> {
        let (cache, monitor, compression) = (self.cache, self.monitor, self.compression);
        let layer = cache.layer(chain_id, diff_id)?;
        let tar = Written { digest: diff_id.clone(), size: layer.size };
        let known = (compression == Compression::None).then(|| info(&tar));
        let mut written = None;
        self.target.stream(known.as_ref(), &mut |out| {
            let blob = match compression {
                Compression::None => {
                    rebuild_into(cache, layer, monitor, out)?;
                    tar.clone()
                }
                _ => compress::encode(compression, out, |take| rebuild(cache, layer, monitor, take))?,
            };
            let info = info(&blob);
            written = Some(blob);
            Ok(info)
        })?;
        let blob = written.unwrap_or(tar);
        self.present.insert(blob.digest.clone());
        Ok(blob)
    }

    fn document(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        if self.present.insert(digest.clone()) { self.target.file(&path(digest), bytes) } else { Ok(()) }
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

pub(super) fn info(blob: &Written) -> FileInfo {
    FileInfo { path: path(&blob.digest), size: blob.size }
}

pub(super) fn descriptor(media_type: &str, blob: &Written) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest, "size": blob.size})
}

/// Returns the descriptor of a layer.
pub(super) fn layer(blob: &Written, compression: Compression) -> Value {
    descriptor(media_type(compression), blob)
}

fn media_type(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "application/vnd.oci.image.layer.v1.tar",
        Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
    }
}

/// Returns the original manifest if it describes these blobs. Otherwise returns a new one with the same
/// annotations.
fn manifest(
    image: &Image,
    documents: &Documents,
    config: &Digest,
    layers: &[Written],
    compression: Compression,
) -> Result<Vec<u8>, Error> {
    let layer_type = media_type(compression);
    let old = &documents.manifest;
    let is_unchanged = old.media_type == MANIFEST
        && image.manifest.algorithm() == Algorithm::Sha256
        && old.config.digest == *config
        && old.layers.len() == layers.len()
        && old.layers.iter().zip(layers).all(|(old, new)| {
            (&old.digest, old.size, old.media_type.as_str()) == (&new.digest, new.size, layer_type)
        });
    if is_unchanged {
        return Ok(documents.manifest_bytes.clone());
    }
    let config = Written { digest: config.clone(), size: documents.config.len() as u64 };
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": layers.iter().map(|blob| layer(blob, compression)).collect::<Vec<_>>(),
    });
    if let Some(annotations) = annotations(&documents.manifest_bytes) {
        manifest["annotations"] = Value::Object(annotations);
    }
    to_json("a manifest", &manifest)
}

/// Returns the annotations of the image from its publisher. Annotations of layers are dropped, because they
/// describe the original blobs.
fn annotations(manifest: &[u8]) -> Option<Map<String, Value>> {
    let mut manifest: Value = serde_json::from_slice(manifest).ok()?;
    match manifest.get_mut("annotations")?.take() {
        Value::Object(annotations) => Some(annotations),
        _ => None,
    }
}

fn entry(image: &Image, name: &str, digest: &Digest, size: usize) -> Value {
    let mut platform = json!({"architecture": image.platform.architecture, "os": image.platform.os});
    if !image.platform.variant.is_empty() {
        platform["variant"] = json!(image.platform.variant);
    }
    json!({
        "mediaType": MANIFEST,
        "digest": digest,
        "size": size,
        "platform": platform,
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name,
        },
    })
}

pub(super) fn to_json(what: &'static str, value: &Value) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| Error::Json { what, source })
}
