//! Tests of layers through extraction, settling, commit, seal and verification, without a registry. They
//! write owners, devices and trusted attributes, and need root.

mod hostile;
mod rules;
mod tamper;

use std::path::Path;
use std::sync::Arc;

use crate::volume::job::Identity;
use crate::volume::store::Documents;
use crate::volume::{self, CapEnforcement, Opened, Trust, VolumeOptions};
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::limits::Limits;
use larder_layer::overlay::attributes::Rights;
use larder_model::chain::ChainId;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::job::LayerFormat;
use larder_model::manifest::Descriptor;
use larder_model::platform::Platform;
use larder_model::seal::{CacheManifest, Content, Image, Layer, Totals, VERSION};
use larder_model::size::ByteSize;
use larder_sys::process;
use larder_testing::layer::BuiltLayer;

use super::cancel::Cancel;
use super::commit::commit;
use super::extraction::{Counters, ReadyLayer, Shared, run};
use super::layers::ChainLayer;
use larder_layer::extract::Expected;

/// A blob in a few chunks.
struct Chunks(Vec<bytes::Bytes>);

impl ChunkSource for Chunks {
    fn next(&mut self) -> std::io::Result<Option<bytes::Bytes>> {
        Ok(self.0.pop())
    }
}

impl Chunks {
    fn of(blob: &[u8]) -> Self {
        Chunks(blob.chunks(1000).rev().map(bytes::Bytes::copy_from_slice).collect())
    }
}

pub(super) struct Options {
    pub(super) trusted: bool,
    pub(super) size: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { trusted: true, size: 256 << 20 }
    }
}

/// Builds a sealed volume of images that are given by their layers.
pub(super) fn build(
    dir: &Path,
    images: &[&[BuiltLayer]],
    options: &Options,
) -> Result<CacheManifest, Failure> {
    process::clear_umask();
    let identity = Identity {
        images: (0..images.len()).map(|n| format!("example.com/image:{n}")).collect(),
        platform: Platform::new("linux", "amd64", ""),
        layer_format: LayerFormat::Overlay,
        verity: false,
        tar_split: true,
        rootless: false,
    };
    let (size, cap, trust) = (ByteSize(options.size), CapEnforcement::Counted, Trust::ThisBoot);
    let Opened::Filling(volume) =
        volume::open(dir, &VolumeOptions { identity: &identity, size, cap, trust })?
    else {
        panic!("a new volume is sealed");
    };
    let shared = Arc::new(Shared {
        volume: Arc::new(*volume),
        rights: Rights { ids: process::ids(), trusted: options.trusted, rootless: false },
        limits: Limits::default(),
        tar_split: true,
        verity: false,
        cancel: Cancel::new(),
    });
    let mut layers: Vec<Layer> = Vec::new();
    let mut sealed = Vec::new();
    let mut documents = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let diff_ids: Vec<Digest> = image.iter().map(|layer| layer.diff_id.clone()).collect();
        let chain = ChainId::chain(&diff_ids);
        for (at, layer) in image.iter().enumerate() {
            if shared.volume.has(&chain[at]) {
                continue;
            }
            let link = ChainLayer {
                chain_id: chain[at].clone(),
                parent: at.checked_sub(1).map(|below| chain[below].clone()),
                diff_id: diff_ids[at].clone(),
                images: vec![number],
            };
            let ready = extract(&shared, layer)?;
            commit(&shared, &link, ready, false)?;
            layers.push(shared.volume.layer(&chain[at]).expect("committed just now"));
        }
        let (image, image_documents) = describe(number, image, &diff_ids, chain);
        sealed.push(image);
        documents.push(image_documents);
    }
    let blobs: std::collections::BTreeMap<_, _> = images
        .iter()
        .flat_map(|image| image.iter())
        .map(|l| (l.digest.clone(), l.blob.len() as u64))
        .collect();
    for (image, documents) in sealed.iter().zip(&documents) {
        let image: &Image = image;
        shared.volume.write_document(&image.manifest, &documents.manifest)?;
        shared.volume.write_document(&image.config, &documents.config)?;
    }
    let content = Content {
        version: VERSION,
        larder: "test".into(),
        job: identity.digest(),
        layer_format: LayerFormat::Overlay,
        tar_split: true,
        size: ByteSize(options.size),
        images: sealed,
        totals: Totals {
            layers: layers.len() as u64,
            entries: layers.iter().map(|layer| layer.entries).sum(),
            compressed_size: blobs.values().sum(),
            size: layers.iter().map(|layer| layer.size).sum(),
        },
        layers,
    };
    let prefetch = crate::prefetch::list(shared.volume.root(), &content, &documents).unwrap();
    Ok(shared.volume.seal(content, &documents, &prefetch, None)?)
}

pub(super) fn extract(shared: &Arc<Shared>, layer: &BuiltLayer) -> Result<ReadyLayer, Failure> {
    let expected = Expected {
        blob: layer.digest.clone(),
        size: layer.blob.len() as u64,
        diff_id: layer.diff_id.clone(),
    };
    let decoder = Decoder::new(Chunks::of(&layer.blob), layer.digest.algorithm(), shared.limits.ratio);
    let (staging, extracted) = run(shared, decoder, &expected, &Counters::default())
        .map_err(|e| Failure::job(e.class(), e.describe()))?;
    let blob = Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest.clone(),
        size: layer.blob.len() as u64,
        urls: Vec::new(),
        platform: None,
    };
    Ok(ReadyLayer { staging, extracted, blob })
}

fn describe(
    number: usize,
    layers: &[BuiltLayer],
    diff_ids: &[Digest],
    chain: Vec<ChainId>,
) -> (Image, Documents) {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Env": [format!("N={number}")]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_digest = Digest::sha256(&config);
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest_type,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest, "size": config.len(),
        },
        "layers": layers.iter().map(|layer| serde_json::json!({
            "mediaType": layer.media_type, "digest": layer.digest, "size": layer.blob.len(),
        })).collect::<Vec<_>>(),
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let image = Image {
        reference: format!("example.com/image:{number}"),
        name: format!("example.com/image:{number}"),
        index: None,
        manifest: Digest::sha256(&manifest),
        config: config_digest,
        platform: Platform::new("linux", "amd64", ""),
        chain,
    };
    let documents = Documents {
        manifest,
        manifest_type: manifest_type.into(),
        config,
        created: Some("2026-01-01T00:00:00Z".into()),
        index: None,
    };
    (image, documents)
}

/// Returns the tree of the layer at `chain`.
pub(super) fn diff(dir: &Path, chain: &ChainId) -> std::path::PathBuf {
    dir.join("overlay").join(chain.hex()).join("diff")
}

/// Returns the chain IDs of an image.
pub(super) fn chain(layers: &[BuiltLayer]) -> Vec<ChainId> {
    ChainId::chain(&layers.iter().map(|layer| layer.diff_id.clone()).collect::<Vec<_>>())
}
