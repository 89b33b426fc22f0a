//! Layers that are already on a volume of this host.

use super::super::layers::ChangeSet;
use super::super::share::{SharedCopy, StoredCopy};
use super::error::RunError;
use super::sources::Bounded;
use super::{Counters, ReadyLayer, Shared, run};
use crate::trees;
use crate::volume::layout;
use crate::volume::staging::Staging;
use larder_layer::cores::Cores;
use larder_layer::decode::Decoder;
use larder_layer::erofs::read::ImageNode;
use larder_layer::erofs_sink;
use larder_layer::erofs_sink::apply::Image;
use larder_layer::extract::{Expected, Extracted, Target, extract};
use larder_layer::rebuild::Rebuilt;
use larder_layer::stored::StoredDir;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Failure;
use larder_model::job::LayerFormat;
use larder_model::manifest::{Descriptor, LayerMediaType};
use larder_model::seal::Layer;
use larder_sys::Dir;
use std::fs::File;
use std::sync::Arc;

/// Extracts a change set that an earlier run committed under another chain ID. Its tar is rebuilt from the
/// volume, and nothing is fetched.
pub(in crate::builder) async fn reuse(
    shared: &Arc<Shared>,
    from: Layer,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, Failure> {
    let fail = |class: Class, message: String| Failure::layer(&from.blob, class, message);
    let (layer, diff_id, size) = (from.clone(), from.diff_id.clone(), from.size);
    let (sharing, counters) = (Arc::clone(shared), Arc::clone(counters));
    let rebuilding = crate::blocking::spawn(move || {
        let volume = &sharing.volume;
        let tar = trees::tar(volume.root(), volume.format(), &layer).map_err(RunError::Tree)?;
        match volume.format() {
            LayerFormat::Overlay => rebuild(&sharing, tar, diff_id, size, &counters),
            LayerFormat::Erofs => {
                let image = volume.image(&diff_id).map_err(RunError::Volume)?;
                let image = image.ok_or(RunError::ImageMissing)?;
                let staging = volume.stage().map_err(RunError::Volume)?;
                let mut extracted = verify_image(&sharing, tar, diff_id, size, image, &staging, &counters)?;
                extracted.tar_split_size = layer.tar_split_size;
                Ok((staging, extracted))
            }
        }
    });
    let rebuilt =
        rebuilding.await.map_err(|e| fail(Class::Internal, format!("rebuilding the layer: {e}")))?;
    let (staging, mut extracted) = rebuilt.map_err(|e| fail(e.class(), e.describe()))?;
    extracted.decoded.compression = from.compression;
    let (media_type, digest, size) = (from.media_type, from.blob, from.compressed_size);
    let blob = Descriptor { media_type, digest, size, urls: Vec::new(), platform: None };
    Ok(ReadyLayer { staging, extracted, blob })
}

/// Extracts a change set that another volume contains, as [`reuse`] does. The record of the layer is not
/// trusted.
pub(in crate::builder) async fn copy(
    shared: &Arc<Shared>,
    copy: SharedCopy,
    change: &ChangeSet,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, Failure> {
    let fail = |class: Class, message: String| Failure::layer(&blob.digest, class, message);
    let SharedCopy { at, stored, lease } = copy;
    let ratio = shared.limits.ratio;
    if at.size > ratio.floor.max(blob.size.saturating_mul(ratio.max)) {
        return Err(fail(Class::Corrupt, format!("its record claims a tar of {} bytes", at.size)));
    }
    // It cannot be verified here, because the blob itself is not read.
    let stated = blob.media_type.parse::<LayerMediaType>();
    if !stated.is_ok_and(|stated| stated.compression == at.compression) {
        return Err(fail(
            Class::Corrupt,
            "its record and the manifest disagree about its compression".into(),
        ));
    }
    let (sharing, counters, diff_id) = (Arc::clone(shared), Arc::clone(counters), change.diff_id.clone());
    let rebuilding = crate::blocking::spawn(move || {
        let _lease = lease;
        match stored {
            StoredCopy::Directory { diff, split } => {
                let tar = Rebuilt::new(split, StoredDir::Directory(diff));
                rebuild(&sharing, tar, diff_id, at.size, &counters)
            }
            StoredCopy::Image { image, split, verity }
                if sharing.volume.format() == LayerFormat::Erofs && sharing.verity == verity =>
            {
                adopt(&sharing, &image, &split, diff_id, at.size, &counters)
            }
            StoredCopy::Image { image, split, .. } => {
                let tar = image_tar(open(&image)?, open(&split)?)?;
                rebuild(&sharing, tar, diff_id, at.size, &counters)
            }
        }
    });
    let rebuilt =
        rebuilding.await.map_err(|e| fail(Class::Internal, format!("rebuilding the layer: {e}")))?;
    if shared.cancel.reason().is_some() {
        return Err(fail(Class::Cancelled, "interrupted".into()));
    }
    let (staging, mut extracted) = rebuilt.map_err(|e| fail(e.class(), e.describe()))?;
    extracted.decoded.compression = at.compression;
    Ok(ReadyLayer { staging, extracted, blob: blob.clone() })
}

/// Extracts the tar of `size` bytes from `source`.
fn rebuild(
    shared: &Shared,
    source: Rebuilt,
    diff_id: Digest,
    size: u64,
    counters: &Counters,
) -> Result<(Staging, Extracted), RunError> {
    // The decoder input is the tar itself.
    let expected = Expected { blob: diff_id.clone(), size, diff_id };
    let source = Bounded { source, left: size, cancel: shared.cancel.clone() };
    let decoder = Decoder::uncompressed(source, expected.blob.algorithm());
    run(shared, decoder, &expected, counters)
}

/// Adopts the image of another volume unchanged, after verifying that it is the image of its tar.
fn adopt(
    shared: &Shared,
    image: &(Dir, String),
    split: &(Dir, String),
    diff_id: Digest,
    size: u64,
    counters: &Counters,
) -> Result<(Staging, Extracted), RunError> {
    let staging = shared.volume.stage().map_err(RunError::Volume)?;
    staging.take(&image.0, image.1.as_bytes(), layout::IMAGE).map_err(RunError::Volume)?;
    staging.take(&split.0, split.1.as_bytes(), layout::TAR_SPLIT).map_err(RunError::Volume)?;
    let own = |name| staging.image(name).map_err(RunError::Volume)?.ok_or(RunError::ImageMissing);
    let split = own(layout::TAR_SPLIT)?;
    let split_size = split.metadata().map_err(RunError::reading)?.len();
    let tar = image_tar(own(layout::IMAGE)?, split)?;
    let mut extracted = verify_image(shared, tar, diff_id, size, own(layout::IMAGE)?, &staging, counters)?;
    extracted.tar_split_size = Some(split_size);
    Ok((staging, extracted))
}

/// Reads the tar of an existing image, and compares the image with the one that would have been written.
fn verify_image(
    shared: &Shared,
    tar: Rebuilt,
    diff_id: Digest,
    size: u64,
    image: File,
    staging: &Staging,
    counters: &Counters,
) -> Result<Extracted, RunError> {
    let expected = Expected { blob: diff_id.clone(), size, diff_id };
    let source = Bounded { source: tar, left: size, cancel: shared.cancel.clone() };
    let cores = Cores::of_process();
    let _busy = cores.occupy();
    let decoder = Decoder::uncompressed(source, expected.blob.algorithm()).with_cores(cores);
    let target = erofs_sink::apply::Target {
        image: Image::Present(image),
        dir: staging.dir(),
        space: &**staging.account(),
        options: shared.image_options(&expected.diff_id),
        written: &counters.written,
        keep_replaced: false,
    };
    let extracted = extract(decoder, Target::Erofs(target), None, &shared.limits, &expected);
    extracted.map_err(|e| RunError::Layer(e.explained(&**staging.account())))
}

fn open((dir, name): &(Dir, String)) -> Result<File, RunError> {
    dir.open_file(name.as_bytes()).map_err(RunError::reading)
}

fn image_tar(image: File, split: File) -> Result<Rebuilt, RunError> {
    let root = ImageNode::root(image).map_err(RunError::reading)?;
    Ok(Rebuilt::new(split, StoredDir::Image(root)))
}
