//! The report of `larder plan`: the layers that a build would fetch, and whether they fit.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::event::Failure;
use super::platform::Platform;
use super::size::ByteSize;
use super::sizing::Admission;

/// The current version of the report format.
pub const VERSION: u32 = 1;

/// A report of `larder plan`. Within a version, fields are only added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Version of the report format, [`VERSION`].
    pub version: u32,
    /// Images, in the order of the job.
    pub images: Vec<PlannedImage>,
    /// Number of distinct layers of all images, by digest of the blob.
    pub distinct_layers: u64,
    /// Compressed size of the distinct layers, bytes.
    pub distinct_bytes: u64,
    /// Bytes that are fetched only once because several images share a layer.
    pub shared_bytes: u64,
    /// Outcome of the 3x rule.
    pub admission: Admission,
    /// `true` if the volume is large enough by the 3x rule; `None` if no size was given.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fits: Option<bool>,
}

/// The report of a plan that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFailed {
    /// Version of the report format, [`VERSION`].
    pub version: u32,
    /// All failures, including the decisive one.
    pub failures: Vec<Failure>,
}

/// An image in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedImage {
    /// The reference as given.
    pub reference: String,
    /// The normal form of the reference.
    pub name: String,
    /// Digest of the index that the tag pointed to, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<Digest>,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Platform that was chosen.
    pub platform: Platform,
    /// Compressed size of the image's distinct layers, bytes.
    pub compressed_size: u64,
    /// Layers of the image, base first.
    pub layers: Vec<PlannedLayer>,
}

/// A layer of a planned image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedLayer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Media type in the manifest.
    pub media_type: String,
    /// Compressed size of the layer, bytes.
    pub size: u64,
    /// References, as given, of the other images that share the layer.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub shared_with: Vec<String>,
}

impl PlanReport {
    /// Creates the report of resolved images: fills in [`PlannedLayer::shared_with`] and the size of each
    /// image, and computes the totals. A `size` of zero means that no size was given.
    pub fn new(mut images: Vec<PlannedImage>, size: ByteSize) -> Self {
        let mut owners: HashMap<Digest, Vec<usize>> = HashMap::new();
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        for (at, image) in images.iter().enumerate() {
            for layer in &image.layers {
                let of = owners.entry(layer.digest.clone()).or_default();
                if of.last() != Some(&at) {
                    of.push(at);
                }
                sizes.insert(layer.digest.clone(), layer.size);
            }
        }
        let references: Vec<String> = images.iter().map(|image| image.reference.clone()).collect();
        for (at, image) in images.iter_mut().enumerate() {
            let mut own: HashMap<Digest, u64> = HashMap::new();
            for layer in &mut image.layers {
                own.insert(layer.digest.clone(), layer.size);
                let others = owners[&layer.digest].iter().filter(|other| **other != at);
                layer.shared_with = others.map(|other| references[*other].clone()).collect();
            }
            image.compressed_size = sum(own.into_values());
        }
        let distinct_bytes = sum(sizes.values().copied());
        let admission = Admission::new(sizes.values().copied(), size);
        PlanReport {
            version: VERSION,
            distinct_layers: sizes.len() as u64,
            distinct_bytes,
            shared_bytes: sum(images.iter().map(|image| image.compressed_size))
                .saturating_sub(distinct_bytes),
            admission,
            fits: (size.0 > 0).then(|| admission.fits()),
            images,
        }
    }
}

fn sum(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, layers: &[(&str, u64)]) -> PlannedImage {
        let layer = |(name, size): &(&str, u64)| PlannedLayer {
            digest: Digest::sha256(name.as_bytes()),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            size: *size,
            shared_with: Vec::new(),
        };
        PlannedImage {
            reference: reference.into(),
            name: format!("docker.io/library/{reference}"),
            index: None,
            manifest: Digest::sha256(reference.as_bytes()),
            platform: Platform::new("linux", "amd64", ""),
            compressed_size: 0,
            layers: layers.iter().map(layer).collect(),
        }
    }

    #[test]
    fn shared_layers_count_once() {
        let images =
            vec![image("a:1", &[("base", 10), ("a", 5), ("a", 5)]), image("b:1", &[("base", 10), ("b", 7)])];
        let report = PlanReport::new(images, ByteSize(66));
        assert_eq!((report.distinct_layers, report.distinct_bytes, report.shared_bytes), (3, 22, 10));
        assert_eq!((report.images[0].compressed_size, report.images[1].compressed_size), (15, 17));
        assert_eq!(report.images[0].layers[0].shared_with, ["b:1"]);
        assert!(report.images[0].layers[1].shared_with.is_empty());
        assert_eq!((report.admission.need, report.fits), (ByteSize(66), Some(true)));
        assert_eq!(PlanReport::new(Vec::new(), ByteSize(0)).fits, None);
    }
}
