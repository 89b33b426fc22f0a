//! Directories for finished layers, depending on the layer format.

use std::collections::HashSet;

use super::budget::Budget;
use super::error::Error;
use super::layout;
use super::staging::Staging;
use larder_model::digest::Digest;
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_model::seal::Layer;
use larder_sys::{Dir, remove};

/// The directories of a volume that contain layers.
#[derive(Debug)]
pub(super) enum LayerDirs {
    /// A directory per layer, in a store of containers/storage.
    Overlay { overlay: Dir, links: Dir, layers: Dir },
    /// An image per change set.
    Erofs { erofs: Dir, chain: Dir, splits: Dir },
}

impl LayerDirs {
    /// Opens the directories, and creates missing ones.
    pub(super) fn open(root: &Dir, format: LayerFormat) -> Result<Self, Error> {
        match format {
            LayerFormat::Overlay => {
                let overlay = ensure(root, layout::OVERLAY)?;
                let links = ensure(&overlay, layout::LINKS)?;
                let layers = ensure(root, layout::LAYERS)?;
                let images = ensure(root, layout::IMAGES)?;
                // Consumers of a read-only mount fail without these files, so they are created first.
                layers.append_file(b"layers.lock", 0o644).context("creating", "layers.lock")?;
                images.append_file(b"images.lock", 0o644).context("creating", "images.lock")?;
                Ok(LayerDirs::Overlay { overlay, links, layers })
            }
            LayerFormat::Erofs => {
                let erofs = ensure(root, layout::EROFS)?;
                let chain = ensure(&erofs, layout::CHAIN)?;
                let splits = ensure(&erofs, layout::SPLITS)?;
                Ok(LayerDirs::Erofs { erofs, chain, splits })
            }
        }
    }

    /// Returns the format of the layers.
    pub(super) fn format(&self) -> LayerFormat {
        match self {
            LayerDirs::Overlay { .. } => LayerFormat::Overlay,
            LayerDirs::Erofs { .. } => LayerFormat::Erofs,
        }
    }

    /// Removes everything that does not belong to one of the layers `kept`.
    pub(super) fn sweep<'a>(&self, kept: impl Iterator<Item = &'a Layer> + Clone) -> Result<(), Error> {
        let set = |name: &dyn Fn(&Layer) -> String| -> HashSet<Vec<u8>> {
            kept.clone().map(|layer| name(layer).into_bytes()).collect()
        };
        match self {
            LayerDirs::Overlay { overlay, links, layers } => {
                let directories = set(&|layer| layer.chain_id.hex().to_owned());
                let short = set(&|layer| layer.chain_id.link());
                let splits = set(&|layer| layout::tar_split(&layer.chain_id));
                keep(overlay, |name| name == layout::LINKS || directories.contains(name))?;
                keep(links, |name| short.contains(name))?;
                keep(layers, |name| name == b"layers.lock" || splits.contains(name))
            }
            LayerDirs::Erofs { erofs, chain, splits } => {
                let fixups = set(&|layer| match &layer.image {
                    Some(image) if image.fixup_size.is_some() => layout::fixup(&layer.chain_id),
                    _ => String::new(),
                });
                keep(chain, |name| fixups.contains(name))?;
                let kept_splits = set(&|layer| layout::image_split(&layer.diff_id));
                keep(splits, |name| kept_splits.contains(name))?;
                let algorithms = set(&|layer| layer.diff_id.algorithm().name().to_owned());
                keep(erofs, |name| {
                    name == layout::CHAIN || name == layout::SPLITS || algorithms.contains(name)
                })?;
                for algorithm in algorithms {
                    let blobs = match erofs.open_dir(&algorithm) {
                        // The images in it are lost too. Their verification will report this.
                        Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                        other => other.context("opening", "erofs")?,
                    };
                    for prefix in blobs.names().context("listing", "erofs")? {
                        let names: HashSet<Vec<u8>> = kept
                            .clone()
                            .map(|layer| layout::image(&layer.diff_id))
                            .filter(|([_, of], _)| of.as_bytes() == prefix)
                            .flat_map(|(_, name)| [format!("{name}{}", layout::VERITY), name])
                            .map(String::into_bytes)
                            .collect();
                        if names.is_empty() {
                            remove::tree(&blobs, &prefix).context("removing", "images of layers")?;
                            continue;
                        }
                        let dir = blobs.open_dir(&prefix).context("opening", "erofs")?;
                        keep(&dir, |name| names.contains(name))?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Opens the committed image of a change set for reading.
    pub(super) fn image(&self, diff_id: &Digest) -> Result<Option<std::fs::File>, Error> {
        let LayerDirs::Erofs { erofs, .. } = self else { return Ok(None) };
        let ([algorithm, prefix], name) = layout::image(diff_id);
        let opened = erofs
            .open_dir(algorithm.as_bytes())
            .and_then(|dir| dir.open_dir(prefix.as_bytes()))
            .and_then(|dir| dir.open_file(name.as_bytes()));
        match opened {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => Ok(other.context("opening the image", &name).map(Some)?),
        }
    }

    /// Moves a finished layer into place. `lower` is the content of the file of that name, for a layer with
    /// parents.
    pub(super) fn put(
        &self,
        staging: Staging,
        layer: &Layer,
        lower: Option<&str>,
        budget: &Budget,
    ) -> Result<(), Error> {
        match self {
            LayerDirs::Overlay { overlay, links, layers } => {
                let hex = layer.chain_id.hex();
                let link = layer.chain_id.link();
                staging.write(layout::LINK, link.as_bytes())?;
                if let Some(lower) = lower {
                    staging.write(layout::LOWER, lower.as_bytes())?;
                }
                budget.with_growth(&[overlay, links, layers], hex, || {
                    if layer.tar_split_size.is_some() {
                        let name = layout::tar_split(&layer.chain_id);
                        put(&staging, layout::TAR_SPLIT, layers, &name)?;
                    }
                    let target = format!("../{hex}/diff");
                    links.symlink(target.as_bytes(), link.as_bytes()).context("linking", hex)?;
                    staging.place(overlay, hex.as_bytes())
                })
            }
            LayerDirs::Erofs { erofs, chain, splits } => {
                let ([algorithm, prefix], name) = layout::image(&layer.diff_id);
                let images = counted(erofs, &algorithm, budget)?;
                let images = counted(&images, &prefix, budget)?;
                // Two names are added to the first.
                budget.with_growth(&[&images, &images, chain, splits], &name, || {
                    let is_new = images.try_stat(name.as_bytes()).context("examining", &name)?.is_none();
                    if is_new {
                        // The image is moved last, so that its presence means that the layer is complete.
                        if layer.tar_split_size.is_some() {
                            put(&staging, layout::TAR_SPLIT, splits, &layout::image_split(&layer.diff_id))?;
                        }
                        if let Some(verity) = layer.image.as_ref().and_then(|image| image.verity.as_ref()) {
                            let sidecar = format!("{name}{}", layout::VERITY);
                            staging.write(layout::VERITY.as_bytes(), verity.sidecar().as_bytes())?;
                            put(&staging, layout::VERITY.as_bytes(), &images, &sidecar)?;
                        }
                        put(&staging, layout::IMAGE, &images, &name)?;
                    }
                    if layer.image.as_ref().is_some_and(|image| image.fixup_size.is_some()) {
                        put(&staging, layout::FIXUP, chain, &layout::fixup(&layer.chain_id))?;
                    }
                    staging.discard_rest()
                })
            }
        }
    }
}

fn put(staging: &Staging, from: &[u8], to: &Dir, name: &str) -> Result<(), Error> {
    Ok(staging.dir().rename(from, to, name.as_bytes()).context("placing", name)?)
}

fn ensure(parent: &Dir, name: &[u8]) -> Result<Dir, Error> {
    Ok(parent.ensure_dir(name, 0o755).context("creating", String::from_utf8_lossy(name))?)
}

/// Opens a directory, and creates it within the cap if missing.
fn counted(parent: &Dir, name: &str, budget: &Budget) -> Result<Dir, Error> {
    match parent.open_dir(name.as_bytes()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            budget.reserve_file(1, name)?;
            budget.with_growth(&[parent], name, || ensure(parent, name.as_bytes()))
        }
        other => Ok(other.context("opening", name)?),
    }
}

fn keep(dir: &Dir, wanted: impl Fn(&[u8]) -> bool) -> Result<(), Error> {
    for name in dir.names().context("listing", "a directory of the volume")? {
        if !wanted(&name) {
            remove::tree(dir, &name).context("removing", String::from_utf8_lossy(&name))?;
        }
    }
    Ok(())
}
