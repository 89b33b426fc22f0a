//! Checks what containerd supports, before anything is changed.

use std::path::Path;

use super::error::Error;
use super::{AttachOptions, Host};
use larder_model::chain::ChainId;
use larder_model::escape::escape;
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_model::runtime::Containerd;
use larder_model::seal::Content;
use larder_sys::{dm_verity, mount};

/// Maximum number of images listed in a note.
const NAMED: usize = 5;

/// Fails early if attaching the volume would fail.
pub(super) fn check(order: &AttachOptions, volume: &Path, content: &Content) -> Result<(), Error> {
    let containerd = &order.containerd;
    if containerd.snapshotter == Containerd::EROFS {
        if order.preload {
            return Err(Error::PreloadErofs);
        }
        if content.layer_format == LayerFormat::Overlay {
            return Err(Error::Directories(volume.to_owned()));
        }
        // containerd checks whether the module is loaded. If a configured snapshotter is missing, its CRI
        // does not start.
        if !mount::has_file_system("erofs").context("looking for EROFS in", "/proc/filesystems")? {
            return Err(Error::NoErofs);
        }
    }
    if order.preload
        && !crate::node::containerd::block_on(containerd, crate::node::containerd::Client::has_snapshotter)?
    {
        let (snapshotter, address) = (containerd.snapshotter.clone(), containerd.address.clone());
        return Err(Error::NotRestarted { snapshotter, address });
    }
    Ok(())
}

/// Returns notes on the differences of containerd's own EROFS snapshotter, one sentence each.
pub(super) fn notes(host: &Host, content: &Content) -> Vec<String> {
    let mut notes = Vec::new();
    let has_trees =
        content.layers.iter().any(|layer| layer.image.as_ref().is_some_and(|image| image.verity.is_some()));
    if has_trees && !dm_verity::is_supported(&host.root) {
        notes.push(
            "this kernel has no dm-verity: containerd uses the layers without their hash trees".to_owned(),
        );
    }
    let depends = |chain: &ChainId| {
        let layer = content.layers.iter().find(|layer| layer.chain_id == *chain);
        layer.and_then(|layer| layer.image.as_ref()).is_some_and(|image| image.fixup_size.is_some())
    };
    let differing: Vec<String> = content
        .images
        .iter()
        .filter(|image| image.chain.iter().any(depends))
        .map(|image| escape(&image.reference).to_string())
        .collect();
    if !differing.is_empty() {
        let more = differing.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        notes.push(format!(
            "containerd uses layers by diff ID without the parts that depend on lower layers; images with such layers: {}{more}",
            differing.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ")
        ));
    }
    notes
}
