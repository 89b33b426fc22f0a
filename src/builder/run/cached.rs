//! Documents of images that an earlier run kept on the volume.

use super::super::resolve::{DocumentCache, ResolvedImage};
use crate::builder::blocking::blocking;
use crate::volume::Volume;
use crate::volume::job::{Identity, Resolved};
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::reference::ImageReference;
use std::collections::HashMap;
use std::sync::Arc;

/// Documents on the volume from an earlier run of the job.
pub(super) struct VolumeCache {
    volume: Arc<Volume>,
    resolved: HashMap<ImageReference, Resolved>,
}

impl VolumeCache {
    pub(super) fn of(volume: &Arc<Volume>) -> Result<Self, Vec<Failure>> {
        let resolved = volume.resolved().map_err(|e| vec![Failure::from(e)])?;
        let resolved = resolved.into_iter().map(|resolved| (resolved.reference.clone(), resolved)).collect();
        Ok(VolumeCache { volume: Arc::clone(volume), resolved })
    }
}

impl DocumentCache for VolumeCache {
    fn resolved(&self, reference: &ImageReference) -> Option<Resolved> {
        self.resolved.get(reference).cloned()
    }

    fn document(&self, digest: &Digest, limit: u64) -> Option<Vec<u8>> {
        self.volume.document(digest, limit)
    }
}

/// Writes manifests and configs to the volume, and then the results of resolving.
pub(super) async fn keep_documents(
    volume: &Arc<Volume>,
    identity: &Identity,
    images: &[ResolvedImage],
) -> Result<(), Vec<Failure>> {
    let (volume, identity, images) = (Arc::clone(volume), identity.clone(), images.to_vec());
    blocking(move || {
        let mut resolved = Vec::new();
        for image in &images {
            if let Some((digest, bytes)) = &image.index {
                volume.write_document(digest, bytes)?;
            }
            volume.write_document(&image.manifest_digest, &image.manifest_bytes)?;
            volume.write_document(&image.manifest.config.digest, &image.config_bytes)?;
            resolved.push(Resolved {
                reference: image.reference.clone(),
                index: image.index.as_ref().map(|(digest, _)| digest.clone()),
                manifest: image.manifest_digest.clone(),
            });
        }
        volume.set_resolved(&identity, &resolved)?;
        Ok(())
    })
    .await
}
