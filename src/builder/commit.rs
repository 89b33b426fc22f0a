//! Commits extracted layers in chain order. Blocking.

use std::sync::Arc;

use super::extraction::{ReadyLayer, Shared};
use super::layers::ChainLayer;
use crate::trees;
use crate::volume::layout;
use larder_layer::erofs::Options;
use larder_layer::erofs::read::ImageNode;
use larder_layer::erofs_sink::apply::Image;
use larder_layer::erofs_sink::fixup;
use larder_layer::erofs_sink::fixup::Times;
use larder_layer::lower::Lower;
use larder_layer::overlay::{copy, settle};
use larder_layer::stored::StoredDir;
use larder_model::class::Class;
use larder_model::event::Failure;
use larder_model::job::LayerFormat;
use larder_model::seal::{Layer, LayerImage, Settled, Verity};

/// Settles a layer on top of its parents and commits it. If it is also needed under another chain ID, `keep`
/// is `true` and a duplicate for that is returned. Both share its files, or its image.
pub(super) fn commit(
    shared: &Arc<Shared>,
    link: &ChainLayer,
    ready: ReadyLayer,
    keep: bool,
) -> Result<Option<ReadyLayer>, Failure> {
    // The original is committed first, because its account includes the files that both share.
    let rest = if keep { Some(duplicate(shared, &ready)?) } else { None };
    let mut ready = ready;
    let volume = &shared.volume;
    let lower = trees::below(volume.root(), volume.format(), link.parent.as_ref(), |id| volume.layer(id))
        .map_err(|e| Failure::job(e.class(), e.to_string()))?;
    let (settled, image) = match volume.format() {
        LayerFormat::Overlay => (directory(shared, &mut ready, &lower)?, None),
        LayerFormat::Erofs => image(shared, link, &mut ready, &lower)?,
    };
    let ReadyLayer { staging, extracted, blob } = ready;
    let layer = Layer {
        chain_id: link.chain_id.clone(),
        parent: link.parent.clone(),
        diff_id: link.diff_id.clone(),
        blob: blob.digest,
        media_type: blob.media_type,
        compression: extracted.decoded.compression,
        compressed_size: blob.size,
        size: extracted.decoded.size,
        entries: extracted.applied.entries,
        tar_split_size: extracted.tar_split_size,
        image,
        settled,
        lost: extracted.applied.lost,
    };
    let blob = layer.blob.clone();
    shared.volume.commit(staging, layer).map_err(|e| Failure { layer: Some(blob), ..Failure::from(e) })?;
    Ok(rest)
}

/// Settles a directory tree in place.
fn directory(shared: &Shared, ready: &mut ReadyLayer, lower: &Lower) -> Result<Settled, Failure> {
    let space = &**ready.staging.account();
    let settled =
        settle::settle(ready.staging.diff()?, &mut ready.extracted.applied, lower, space, shared.rights);
    settled.map_err(|e| unsettled(ready, e))
}

/// Returns the image of a layer. Writes the fixup image that is mounted on top of it, if it needs one.
fn image(
    shared: &Shared,
    link: &ChainLayer,
    ready: &mut ReadyLayer,
    lower: &Lower,
) -> Result<(Settled, Option<LayerImage>), Failure> {
    // The image is already on the volume if the change set was committed under another chain ID.
    let image = match shared.volume.image(&link.diff_id)? {
        None => ready.staging.image(layout::IMAGE)?,
        present => present,
    };
    let image = image.ok_or_else(|| Failure::job(Class::Internal, "the image of a layer is missing"))?;
    let size = image
        .metadata()
        .map(|facts| facts.len())
        .map_err(|e| Failure::job(Class::Internal, format!("examining the image of a layer: {e}")))?;
    let root = ImageNode::root(image)
        .map(StoredDir::Image)
        .map_err(|e| Failure::job(Class::Internal, format!("reading the image of a layer: {e}")))?;
    let planned = fixup::plan(&root, &mut ready.extracted.applied, lower, Times::Kept);
    let (settled, fixup) = planned.map_err(|e| unsettled(ready, e))?;
    let fixup_size = match fixup {
        None => None,
        Some(fixup) => {
            let file = Image::New(ready.staging.create_image(layout::FIXUP)?);
            let space = &**ready.staging.account();
            let options = Options::of(link.chain_id.digest());
            let written = fixup.write(file, ready.staging.dir(), space, options);
            Some(written.map_err(|e| unsettled(ready, e))?.size)
        }
    };
    let verity = ready.extracted.image.and_then(|image| image.verity).map(Verity::from);
    Ok((settled, Some(LayerImage { size, fixup_size, verity })))
}

fn unsettled(ready: &ReadyLayer, error: larder_layer::Error) -> Failure {
    let error = error.explained(&**ready.staging.account());
    layer_fail(ready, error.class(), format!("settling the layer on its parents: {error}"))
}

fn layer_fail(ready: &ReadyLayer, class: Class, message: String) -> Failure {
    Failure::layer(&ready.blob.digest, class, message)
}

/// Creates a second staging directory for the same layer, before either is settled. It contains the same
/// files, or is empty for an image, which is not needed a second time.
fn duplicate(shared: &Shared, ready: &ReadyLayer) -> Result<ReadyLayer, Failure> {
    let staging = shared.volume.stage()?;
    if shared.volume.format() == LayerFormat::Overlay {
        copy::layer(&ready.staging.diff()?, &staging.diff()?, &**staging.account(), shared.rights)
            .map_err(|e| e.explained(&**staging.account()))
            .map_err(|e| layer_fail(ready, e.class(), format!("duplicating the layer: {e}")))?;
        if ready.extracted.tar_split_size.is_some() {
            let name = layout::TAR_SPLIT;
            let linked = ready.staging.dir().link(name, staging.dir(), name);
            linked.map_err(|e| {
                layer_fail(ready, Class::Internal, format!("linking the tar-split file: {e}"))
            })?;
        }
    }
    let extracted = ready.extracted.clone();
    Ok(ReadyLayer { staging, extracted, blob: ready.blob.clone() })
}
