//! Putting extracted layers in their place in chain order, and keeping them durable. Blocking.

use std::sync::Arc;

use super::extraction::{Ready, Shared};
use super::failure::Fail;
use super::layers::Link;
use crate::trees;
use crate::volume::layout;
use larder_layer::erofs::apply::Image;
use larder_layer::erofs::fixup::Times;
use larder_layer::erofs::read::ImageNode;
use larder_layer::erofs::{Options, fixup};
use larder_layer::overlay::lower::Lower;
use larder_layer::overlay::{copy, settle};
use larder_layer::stored::StoredDir;
use larder_model::class::Class;
use larder_model::job::LayerFormat;
use larder_model::seal::{Layer, LayerImage, Settled, Verity};

/// Settles a layer on top of its parents and commits it. Where it is needed under another chain ID as well, `keep` is
/// true and the layer is given back for that; the two share its files, or its image.
pub(super) fn commit(
    shared: &Arc<Shared>,
    link: &Link,
    ready: Ready,
    keep: bool,
) -> Result<Option<Ready>, Fail> {
    // The original goes first: its account holds the bytes of the files that both share.
    let rest = if keep { Some(duplicate(shared, &ready)?) } else { None };
    let mut ready = ready;
    let volume = &shared.volume;
    let lower = trees::below(volume.root(), volume.format(), link.parent.as_ref(), |id| volume.layer(id))
        .map_err(|e| Fail::job(e.class(), e.to_string()))?;
    let (settled, image) = match volume.format() {
        LayerFormat::Overlay => (directory(shared, &mut ready, &lower)?, None),
        LayerFormat::Erofs => image(shared, link, &mut ready, &lower)?,
    };
    let Ready { staging, extracted, blob } = ready;
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
    shared.volume.commit(staging, layer).map_err(|e| Fail { layer: Some(blob), ..Fail::from(e) })?;
    Ok(rest)
}

/// Settles a tree in place.
fn directory(shared: &Shared, ready: &mut Ready, lower: &Lower) -> Result<Settled, Fail> {
    let space = &**ready.staging.account();
    let settled =
        settle::settle(ready.staging.diff()?, &mut ready.extracted.applied, lower, space, shared.rights);
    settled.map_err(|e| unsettled(ready, e))
}

/// Writes the image that is to be laid over that of the layer, where one is needed.
fn image(
    shared: &Shared,
    link: &Link,
    ready: &mut Ready,
    lower: &Lower,
) -> Result<(Settled, Option<LayerImage>), Fail> {
    // It is in its place already where the change set was committed under another chain ID before.
    let image = match shared.volume.image(&link.diff_id)? {
        None => ready.staging.image(layout::IMAGE)?,
        present => present,
    };
    let image = image.ok_or_else(|| Fail::job(Class::Internal, "the image of a layer has gone"))?;
    let size = image
        .metadata()
        .map(|facts| facts.len())
        .map_err(|e| Fail::job(Class::Internal, format!("examining the image of a layer: {e}")))?;
    let root = ImageNode::root(image)
        .map(StoredDir::Image)
        .map_err(|e| Fail::job(Class::Internal, format!("reading the image of a layer: {e}")))?;
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

fn unsettled(ready: &Ready, error: larder_layer::Error) -> Fail {
    let error = error.explained(&**ready.staging.account());
    layer_fail(ready, error.class(), format!("settling the layer on its parents: {error}"))
}

fn layer_fail(ready: &Ready, class: Class, message: String) -> Fail {
    Fail { class, images: Vec::new(), layer: Some(ready.blob.digest.clone()), message }
}

/// A second staging directory for the same layer, before either is settled: with the same files, or empty, for an image is
/// not needed a second time.
fn duplicate(shared: &Shared, ready: &Ready) -> Result<Ready, Fail> {
    let staging = shared.volume.stage()?;
    if shared.volume.format() == LayerFormat::Overlay {
        copy::layer(&ready.staging.diff()?, &staging.diff()?, &**staging.account(), shared.rights)
            .map_err(|e| e.explained(&**staging.account()))
            .map_err(|e| layer_fail(ready, e.class(), format!("giving the layer a second place: {e}")))?;
        if ready.extracted.tar_split_size.is_some() {
            let name = layout::TAR_SPLIT;
            let linked = ready.staging.dir().link(name, staging.dir(), name);
            linked.map_err(|e| {
                layer_fail(ready, Class::Internal, format!("linking the tar-split file: {e}"))
            })?;
        }
    }
    let extracted = ready.extracted.clone();
    Ok(Ready { staging, extracted, blob: ready.blob.clone() })
}
