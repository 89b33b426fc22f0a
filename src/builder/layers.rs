//! Which layers a job needs: every chain ID once, every diff ID fetched once.

use std::collections::{BTreeMap, HashMap};

use super::failure::Fail;
use super::resolve::ResolvedImage;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;

/// A layer on top of its parents.
#[derive(Clone, Debug)]
pub(super) struct Link {
    /// Its chain ID.
    pub(super) chain_id: ChainId,
    /// Chain ID of its parent.
    pub(super) parent: Option<ChainId>,
    /// Its diff ID.
    pub(super) diff_id: Digest,
    /// Indexes of the images that contain it.
    pub(super) images: Vec<usize>,
}

/// A change set, wherever it is used.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Its diff ID.
    pub(super) diff_id: Digest,
    /// Where it can be had: an image's repository and the blob there. The blobs may differ in compression.
    pub(super) sources: Vec<(ImageReference, Descriptor)>,
    /// Indexes of the images that contain it.
    pub(super) images: Vec<usize>,
}

/// The layers of a job.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    /// Parents before children.
    pub(super) links: Vec<Link>,
    /// Largest blob first: what takes longest starts first.
    pub(super) changes: Vec<Change>,
}

impl Layers {
    /// Gathers the layers of all images.
    pub(super) fn of(images: &[ResolvedImage]) -> Self {
        let mut links: Vec<Link> = Vec::new();
        let mut known: HashMap<ChainId, usize> = HashMap::new();
        let mut changes: BTreeMap<&Digest, Change> = BTreeMap::new();
        for (number, image) in images.iter().enumerate() {
            let chain = ChainId::chain(&image.config.diff_ids);
            let mut parent = None;
            for ((chain_id, diff_id), descriptor) in
                chain.into_iter().zip(&image.config.diff_ids).zip(&image.manifest.layers)
            {
                let at = *known.entry(chain_id.clone()).or_insert_with(|| {
                    let parent = parent.clone();
                    let (chain_id, diff_id) = (chain_id.clone(), diff_id.clone());
                    links.push(Link { chain_id, parent, diff_id, images: Vec::new() });
                    links.len() - 1
                });
                note(&mut links[at].images, number);
                let change = changes.entry(diff_id).or_insert_with(|| Change {
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
        let mut changes: Vec<Change> = changes.into_values().collect();
        changes.sort_by_key(|change| std::cmp::Reverse(change.size()));
        Layers { links, changes }
    }
}

impl Change {
    /// Size of the blob that is fetched, bytes.
    pub(super) fn size(&self) -> u64 {
        self.sources.first().map_or(0, |(_, blob)| blob.size)
    }
}

/// A blob has one size: manifests that disagree about it cannot all be right.
pub(super) fn check_sizes(images: &[ResolvedImage]) -> Result<(), Fail> {
    let mut sizes: HashMap<&Digest, u64> = HashMap::new();
    for image in images {
        for layer in &image.manifest.layers {
            let size = *sizes.entry(&layer.digest).or_insert(layer.size);
            if size != layer.size {
                let message = format!("one manifest gives it {size} bytes, another {}", layer.size);
                let layer = Some(layer.digest.clone());
                return Err(Fail { layer, ..Fail::image(&image.reference, Class::Corrupt, message) });
            }
        }
    }
    Ok(())
}

/// The distinct blobs of all images with their sizes: what the 3x rule counts.
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
