//! Putting extracted layers in their place in chain order, and keeping them durable. Blocking.

use std::sync::Arc;

use super::extraction::{Ready, Shared};
use super::failure::Fail;
use super::layers::Link;
use crate::layer::overlay::lower::Lower;
use crate::layer::overlay::{copy, settle};
use crate::model::class::Class;
use crate::model::seal::Layer;
use crate::sys::Dir;
use crate::volume::{Volume, layout};

/// Settles a layer on top of its parents and commits it. Where it is needed under another chain ID as well, `keep` is
/// true and the layer is given back for that; the copy shares its files.
pub(super) fn commit(
    shared: &Arc<Shared>,
    link: &Link,
    ready: Ready,
    keep: bool,
) -> Result<Option<Ready>, Fail> {
    // The original goes first: its account holds the bytes of the files that both share.
    let rest = if keep { Some(duplicate(shared, &ready)?) } else { None };
    let mut ready = ready;
    let layer_fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(ready.blob.digest.clone()),
        message,
    };
    let lower = lower(&shared.volume, link)?;
    let settled = settle::settle(
        ready.staging.diff()?,
        &mut ready.extracted.applied,
        &lower,
        &**ready.staging.account(),
        shared.rights,
    )
    .map_err(|e| e.explained(&**ready.staging.account()))
    .map_err(|e| layer_fail(e.class(), format!("settling the layer on its parents: {e}")))?;
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
        settled,
        lost: extracted.applied.lost,
    };
    let blob = layer.blob.clone();
    shared.volume.commit(staging, layer).map_err(|e| Fail { layer: Some(blob), ..Fail::from(e) })?;
    Ok(rest)
}

/// The trees below a layer, topmost first.
fn lower(volume: &Volume, link: &Link) -> Result<Lower, Fail> {
    let mut trees: Vec<Dir> = Vec::new();
    let mut next = link.parent.clone();
    while let Some(chain_id) = next {
        trees.push(volume.diff(&chain_id)?);
        next = volume.parent(&chain_id);
    }
    Ok(Lower::new(trees))
}

/// A second staging directory with the same files, before either is settled.
fn duplicate(shared: &Shared, ready: &Ready) -> Result<Ready, Fail> {
    let layer_fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(ready.blob.digest.clone()),
        message,
    };
    let staging = shared.volume.stage()?;
    copy::layer(&ready.staging.diff()?, &staging.diff()?, &**staging.account(), shared.rights)
        .map_err(|e| e.explained(&**staging.account()))
        .map_err(|e| layer_fail(e.class(), format!("giving the layer a second place: {e}")))?;
    if ready.extracted.tar_split_size.is_some() {
        let name = layout::TAR_SPLIT;
        let linked = ready.staging.dir().link(name, staging.dir(), name);
        linked.map_err(|e| layer_fail(Class::Internal, format!("linking the tar-split file: {e}")))?;
    }
    let extracted = ready.extracted.clone();
    Ok(Ready { staging, extracted, blob: ready.blob.clone() })
}
