//! Indexes (OCI image spec, image-index.md) and the choice of a platform.

use oci_distribution::manifest::{ImageIndexEntry, OciImageIndex};

use super::media_type::{Kind, is_image_config};
use super::{Descriptor, MAX_DESCRIPTORS, ManifestError, error, json};
use crate::model::platform::Platform;

/// An index or manifest list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Media type: the body's `mediaType`, else the Content-Type, else the OCI one.
    pub media_type: String,
    /// The entries that may be an image or a further index, in the order of the index. Artifacts, attestations
    /// (`unknown/unknown`) and entries whose platform has no name that can be written are left out.
    pub manifests: Vec<Descriptor>,
}

impl Index {
    pub(super) fn read(bytes: &[u8], media_type: String) -> Result<Self, ManifestError> {
        let wire: OciImageIndex = json::read(bytes)?;
        error::at_most("manifests", wire.manifests.len() as u64, MAX_DESCRIPTORS)?;
        let mut manifests = Vec::with_capacity(wire.manifests.len());
        for entry in wire.manifests {
            manifests.extend(candidate(entry)?);
        }
        Ok(Index { media_type, manifests })
    }

    /// The entry that serves `want` best by [`Platform::preference`]; of equals the first.
    ///
    /// The specification makes `platform` optional. An entry without one is taken only when no entry with one fits; the
    /// platform of its config decides then.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`] with the platforms offered.
    pub fn choose(&self, want: &Platform) -> Result<&Descriptor, ManifestError> {
        let named = self.manifests.iter().filter_map(|entry| {
            let preference = want.preference(entry.platform.as_ref()?)?;
            Some((preference, entry))
        });
        let best = named.min_by_key(|(preference, _)| *preference);
        let unnamed = || self.manifests.iter().find(|entry| entry.platform.is_none());
        best.map(|(_, entry)| entry)
            .or_else(unnamed)
            .ok_or_else(|| ManifestError::NoPlatform { want: want.to_string(), offered: self.platforms() })
    }

    fn platforms(&self) -> Vec<String> {
        let platforms = self.manifests.iter().filter_map(|entry| entry.platform.as_ref());
        platforms.map(Platform::to_string).collect()
    }
}

/// An entry that a build may choose. Digest and size of the others are checked all the same.
fn candidate(entry: ImageIndexEntry) -> Result<Option<Descriptor>, ManifestError> {
    let descriptor = Descriptor::new(entry.media_type, &entry.digest, entry.size)?;
    let artifact = entry.artifact_type.is_some_and(|t| !is_image_config(&t));
    if artifact || Kind::of(&descriptor.media_type).is_none() {
        return Ok(None);
    }
    let Some(wire) = entry.platform else {
        return Ok(Some(descriptor));
    };
    let variant = wire.variant.filter(|v| !v.is_empty()).map(|v| format!("/{v}"));
    let name = format!("{}/{}{}", wire.os, wire.architecture, variant.unwrap_or_default());
    let platform = name.parse::<Platform>().ok();
    Ok(platform
        .filter(|p| p.os != "unknown" && p.architecture != "unknown")
        .map(|platform| Descriptor { platform: Some(platform), ..descriptor }))
}
