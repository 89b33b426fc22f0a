//! The seal of a finished build.

use super::super::layers;
use super::super::layers::Layers;
use super::super::order::BuildRequest;
use super::super::resolve::ResolvedImage;
use crate::builder::blocking::blocking;
use crate::volume::Volume;
use crate::volume::job::Identity;
use crate::volume::store::Documents;
use crate::{prefetch, volume};
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::seal::{CacheManifest, Content, Image, Layer, Totals, VERSION};
use larder_model::trust::Trust as KeyTrust;
use std::sync::Arc;

pub(super) async fn seal(
    order: &BuildRequest,
    identity: Identity,
    volume: Arc<Volume>,
    images: Vec<ResolvedImage>,
    layers: Layers,
) -> Result<CacheManifest, Vec<Failure>> {
    let order = order.clone();
    blocking(move || {
        let mut committed: Vec<Layer> = Vec::new();
        for link in &layers.links {
            let layer = volume.layer(&link.chain_id);
            let missing =
                || Failure::job(Class::Internal, format!("layer {} is not on the volume", link.chain_id));
            committed.push(layer.ok_or_else(missing)?);
        }
        let content = Content {
            version: VERSION,
            larder: env!("CARGO_PKG_VERSION").to_owned(),
            job: identity.digest(),
            layer_format: order.layer_format,
            tar_split: order.tar_split,
            size: order.size,
            images: images.iter().map(sealed_image).collect(),
            totals: totals(&committed, &images),
            layers: committed,
        };
        let documents: Vec<Documents> = images.into_iter().map(documents).collect();
        let prefetch = prefetch::list(volume.root(), &content, &documents)
            .map_err(|e| Failure::job(e.class(), e.to_string()))?;
        let sign = |cache_json: &[u8]| match &order.signer {
            Some(signer) => signer
                .sign(cache_json)
                .map_err(|refusal| volume::Error::Sign { class: refusal.class, message: refusal.message }),
            None => Err(volume::Error::Sign { class: Class::Internal, message: "no signer".to_owned() }),
        };
        let sign: Option<&volume::seal::Sign<'_>> = if order.signer.is_some() { Some(&sign) } else { None };
        Ok(volume.seal(content, &documents, &prefetch, sign)?)
    })
    .await
}

/// Checks that a sealed volume is already signed with the key of the order. A sealed volume is never changed,
/// so it cannot be signed now.
pub(super) async fn check_signed(order: &BuildRequest) -> Result<(), Vec<Failure>> {
    let Some(signer) = &order.signer else { return Ok(()) };
    let (path, key) = (order.volume.clone(), signer.public());
    blocking(move || match volume::read_trusted(&path, &KeyTrust::only(vec![key])) {
        Err(volume::Error::Trust { path, source }) if source.class() == Class::Denied => {
            let message = format!(
                "{path} is sealed already, but not signed by {}, and a sealed volume is never changed: \
                     give another directory, or build without a signing key",
                key.id()
            );
            Err(Failure::job(Class::Conflict, message))
        }
        checked => Ok(checked.map(drop)?),
    })
    .await
}

pub(super) fn sealed_image(image: &ResolvedImage) -> Image {
    Image {
        reference: image.reference.given().to_owned(),
        name: image.reference.to_string(),
        index: image.index.as_ref().map(|(digest, _)| digest.clone()),
        manifest: image.manifest_digest.clone(),
        config: image.manifest.config.digest.clone(),
        platform: image.platform.clone(),
        chain: ChainId::chain(&image.config.diff_ids),
    }
}

pub(super) fn documents(image: ResolvedImage) -> Documents {
    Documents {
        manifest: image.manifest_bytes,
        manifest_type: image.manifest_type,
        config: image.config_bytes,
        created: image.config.created,
        index: image.index.map(|(_, bytes)| bytes),
    }
}

pub(super) fn totals(layers: &[Layer], images: &[ResolvedImage]) -> Totals {
    Totals {
        layers: layers.len() as u64,
        entries: layers.iter().map(|layer| layer.entries).sum(),
        compressed_size: layers::distinct_blobs(images).values().sum(),
        size: layers.iter().map(|layer| layer.size).sum(),
    }
}

pub(super) async fn verify(order: &BuildRequest) -> Result<(), Vec<Failure>> {
    let path = order.volume.clone();
    blocking(move || {
        crate::verify::verify(&path)
            .map(|_| ())
            .map_err(|e| Failure::job(e.class(), format!("verifying the sealed volume: {e}")))
    })
    .await
}
