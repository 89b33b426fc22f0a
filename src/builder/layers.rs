//! The layers that a job needs: each chain ID once, and each diff ID fetched once.

use std::collections::{BTreeMap, HashMap};

use super::resolve::ResolvedImage;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;

/// A layer on top of its parents.
#[derive(Clone, Debug)]
pub(super) struct ChainLayer {
    /// Chain ID of the layer.
    pub(super) chain_id: ChainId,
    /// Chain ID of its parent.
    pub(super) parent: Option<ChainId>,
    /// Diff ID of the layer.
    pub(super) diff_id: Digest,
    /// Indexes of the images that contain it.
    pub(super) images: Vec<usize>,
}

/// A change set, which can be part of several chains.
#[derive(Clone, Debug)]
pub(super) struct ChangeSet {
    /// Diff ID of the change set.
    pub(super) diff_id: Digest,
    /// Sources of the change set: an image's repository and a blob there. The blobs can differ in
    /// compression.
    pub(super) sources: Vec<(ImageReference, Descriptor)>,
    /// Indexes of the images that contain it.
    pub(super) images: Vec<usize>,
}

/// All layers of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    /// Layers in chain order, parents before children.
    pub(super) links: Vec<ChainLayer>,
    /// Change sets, largest blob first, so that the longest transfer starts first.
    pub(super) changes: Vec<ChangeSet>,
}

impl Layers {
    /// Collects the layers of all images.
    pub(super) fn of(images: &[ResolvedImage]) -> Self {
        let mut links: Vec<ChainLayer> = Vec::new();
        let mut known: HashMap<ChainId, usize> = HashMap::new();
        let mut changes: BTreeMap<&Digest, ChangeSet> = BTreeMap::new();
        for (number, image) in images.iter().enumerate() {
            let chain = ChainId::chain(&image.config.diff_ids);
            let mut parent = None;
            for ((chain_id, diff_id), descriptor) in
                chain.into_iter().zip(&image.config.diff_ids).zip(&image.manifest.layers)
            {
                let at = *known.entry(chain_id.clone()).or_insert_with(|| {
                    let parent = parent.clone();
                    let (chain_id, diff_id) = (chain_id.clone(), diff_id.clone());
                    links.push(ChainLayer { chain_id, parent, diff_id, images: Vec::new() });
                    links.len() - 1
                });
                note(&mut links[at].images, number);
                let change = changes.entry(diff_id).or_insert_with(|| ChangeSet {
                    diff_id: diff_id.clone(),
                    sources: Vec::new(),
                    images: Vec::new(),
                });
                note(&mut change.images, number);
                let source = (image.reference.clone(), descriptor.clone());
                let same = |(reference, blob): &(ImageReference, Descriptor)| {
                    blob.digest == source.1.digest && reference.name() == source.0.name()
                };
                if !change.sources.iter().any(same) {
                    change.sources.push(source);
                }
                parent = Some(chain_id);
            }
        }
        let mut changes: Vec<ChangeSet> = changes.into_values().collect();
        changes.sort_by_key(|change| std::cmp::Reverse(change.size()));
        Layers { links, changes }
    }
}

impl ChangeSet {
    /// Returns the size of the fetched blob in bytes.
    pub(super) fn size(&self) -> u64 {
        self.sources.first().map_or(0, |(_, blob)| blob.size)
    }
}

/// Checks that all manifests agree about the size of each blob.
pub(super) fn check_sizes(images: &[ResolvedImage]) -> Result<(), Failure> {
    let mut sizes: HashMap<&Digest, u64> = HashMap::new();
    for image in images {
        for layer in &image.manifest.layers {
            let size = *sizes.entry(&layer.digest).or_insert(layer.size);
            if size != layer.size {
                let message = format!("manifests disagree about its size: {size} and {} bytes", layer.size);
                let layer = Some(layer.digest.clone());
                return Err(Failure { layer, ..Failure::image(&image.reference, Class::Corrupt, message) });
            }
        }
    }
    Ok(())
}

/// Returns the distinct blobs of all images with their sizes, as the 3x rule counts them.
pub(super) fn distinct_blobs(images: &[ResolvedImage]) -> BTreeMap<Digest, u64> {
    images
        .iter()
        .flat_map(|image| &image.manifest.layers)
        .map(|layer| (layer.digest.clone(), layer.size))
        .collect()
}

fn note(list: &mut Vec<usize>, number: usize) {
    if list.last() != Some(&number) && !list.contains(&number) {
        list.push(number);
    }
}
