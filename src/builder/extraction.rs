//! Extraction of one layer. An async side moves chunks from the registry, and a blocking side extracts them.
//! A small bounded channel between them makes a slow disk throttle the socket.

mod sources;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use super::cancel::Cancel;
use super::events::Events;
use super::failure::Fail;
use super::layers::ChangeSet;
use super::remote::Piped;
use super::share::{SharedCopy, StoredCopy};
use super::source::{Blob, Source};
use crate::archive;
use crate::trees;
use crate::volume::budget::Account;
use crate::volume::staging::Staging;
use crate::volume::{Volume, layout};
use larder_layer::cores::Cores;
use larder_layer::decode::{ChunkSource, Decoder};
use larder_layer::erofs;
use larder_layer::erofs::apply::Image;
use larder_layer::erofs::read::ImageNode;
use larder_layer::extract::{self, Expected, Extracted, TarSplitTarget, Target, extract};
use larder_layer::limits::Limits;
use larder_layer::overlay;
use larder_layer::overlay::attributes::Rights;
use larder_layer::rebuild::Rebuilt;
use larder_layer::space::Space;
use larder_layer::stored::StoredDir;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Event;
use larder_model::job::LayerFormat;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;
use larder_model::seal::{Compression, Layer};
use larder_model::shortage::Shortage;
use larder_sys::Dir;
pub(super) use sources::Bounded;
use sources::{Counted, Message, Received, Transfer};

/// Maximum number of chunks in the channel. A chunk is one read from the socket, so this limits memory to a
/// few MiB per layer.
const MAX_CHUNKS: usize = 8;

/// Progress of a layer.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Number of compressed bytes received.
    pub(super) received: AtomicU64,
    /// Number of content bytes written.
    pub(super) written: AtomicU64,
}

/// State that all layers of a build share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The volume that layers are written to.
    pub(super) volume: Arc<Volume>,
    /// File attributes that this process can write.
    pub(super) rights: Rights,
    /// Limits on members and sizes.
    pub(super) limits: Limits,
    /// `true` if tar-split files are written.
    pub(super) tar_split: bool,
    /// `true` if images get hash trees.
    pub(super) verity: bool,
    /// Cancels the extraction when it is set.
    pub(super) cancel: Cancel,
}

impl Shared {
    /// Returns the options for the image of a change set.
    fn image_options(&self, diff_id: &Digest) -> erofs::Options {
        erofs::Options { verity: self.verity, ..erofs::Options::of(diff_id) }
    }
}

/// An extracted and verified layer that waits for its parents.
#[derive(Debug)]
pub(super) struct ReadyLayer {
    /// Staging directory of the layer.
    pub(super) staging: Staging,
    /// Digests, sizes and the changes that settling needs.
    pub(super) extracted: Extracted,
    /// The blob that it was extracted from.
    pub(super) blob: Descriptor,
}

impl Space for Account {
    fn reserve(&self, bytes: u64) -> Result<(), Shortage> {
        Account::reserve(self, bytes)
    }

    fn release(&self, bytes: u64) {
        Account::release(self, bytes);
    }

    fn exhausted(&self) -> Option<Shortage> {
        Account::exhausted(self)
    }
}

/// Fetches a change set from the first repository and host that has it, and extracts it.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    source: &Source,
    change: &ChangeSet,
    counters: &Arc<Counters>,
    events: &Events,
) -> Result<ReadyLayer, Fail> {
    let mut first_failure: Option<Fail> = None;
    for at in &change.sources {
        let mut corrupted = None;
        for skipped in 0.. {
            let fetched = match fetch_from(shared, source, change, at, skipped, counters).await {
                // The next host might have the correct data.
                Err(FetchFailure::Corrupted(fail)) => {
                    corrupted.get_or_insert(fail);
                    continue;
                }
                // No further host, or none that has it. Another repository might have it and grant access.
                Err(FetchFailure::Source(fail)) if matches!(fail.class, Class::NotFound | Class::Denied) => {
                    first_failure = first_failure.or(corrupted).or(Some(fail));
                    break;
                }
                Err(FetchFailure::Source(fail) | FetchFailure::Local(fail)) => Err(fail),
                Ok(ready) => Ok(ready),
            };
            if let Some(Fail { message, .. }) = corrupted {
                events.emit(Event::Warning {
                    message: format!("layer {}: {message}; trying another host", at.1.digest),
                });
            }
            return fetched;
        }
    }
    Err(first_failure.unwrap_or_else(|| Fail::job(Class::Internal, "a layer without a source")))
}

/// The origin of a failure.
enum FetchFailure {
    /// The source did not deliver the blob.
    Source(Fail),
    /// The received data is not that of the blob.
    Corrupted(Fail),
    Local(Fail),
}

impl FetchFailure {
    /// Classifies the error of an extraction.
    fn of(error: &RunError, fail: impl FnOnce(Class, String) -> Fail) -> Self {
        let fail = fail(error.class(), error.describe());
        match error {
            RunError::Layer(error) if error.is_blob_mismatch() => FetchFailure::Corrupted(fail),
            _ => FetchFailure::Local(fail),
        }
    }
}

async fn fetch_from(
    shared: &Arc<Shared>,
    source: &Source,
    change: &ChangeSet,
    (reference, blob): &(ImageReference, Descriptor),
    skipped: usize,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, FetchFailure> {
    let fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(blob.digest.clone()),
        message,
    };
    let expected = Expected { blob: blob.digest.clone(), size: blob.size, diff_id: change.diff_id.clone() };
    counters.received.store(0, Ordering::Relaxed);
    counters.written.store(0, Ordering::Relaxed);
    let mut stream = match source.blob(reference, blob, skipped) {
        Ok(Blob::Stream(stream)) => stream,
        Ok(Blob::File(file)) => return from_file(shared, file, expected, blob, counters).await,
        Ok(Blob::Piped(piped)) => return from_pipe(shared, source, piped, expected, blob, counters).await,
        Err(e) => return Err(FetchFailure::Source(fail(e.class(), e.to_string()))),
    };
    let (sender, receiver) = mpsc::channel(MAX_CHUNKS);
    let blocking = {
        let (shared, counters) = (Arc::clone(shared), Arc::clone(counters));
        tokio::task::spawn_blocking(move || {
            let decoder = Decoder::new(Received(receiver), expected.blob.algorithm(), shared.limits.ratio);
            let decoder = decoder.ahead();
            run(&shared, decoder, &expected, &counters)
        })
    };
    let fetched = loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = shared.cancel.cancelled() => break Err(fail(Class::Cancelled, "interrupted".into())),
        };
        let message = match next {
            Ok(Some(chunk)) => {
                counters.received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                Message::Chunk(chunk)
            }
            Ok(None) => Message::End,
            Err(e) => break Err(fail(e.class(), format!("fetching the layer: {e}"))),
        };
        let is_end = matches!(message, Message::End);
        // A closed channel means that the other side failed. Its error is the cause, so it is returned.
        if sender.send(message).await.is_err() || is_end {
            break Ok(());
        }
    };
    drop(sender);
    let extracted = blocking.await;
    let extracted = extracted
        .map_err(|e| FetchFailure::Local(fail(Class::Internal, format!("extracting the layer: {e}"))))?;
    fetched.map_err(FetchFailure::Source)?;
    let (staging, extracted) = extracted.map_err(|e| FetchFailure::of(&e, fail))?;
    Ok(ReadyLayer { staging, extracted, blob: blob.clone() })
}

/// Extracts a layer from a file. There is no network to wait for, so the extracting thread reads it directly.
async fn from_file(
    shared: &Arc<Shared>,
    file: archive::Blob,
    expected: Expected,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, FetchFailure> {
    let fail = |class: Class, message: String| {
        FetchFailure::Local(Fail { class, images: Vec::new(), layer: Some(blob.digest.clone()), message })
    };
    let (sharing, counters) = (Arc::clone(shared), Arc::clone(counters));
    let blocking = tokio::task::spawn_blocking(move || {
        let source = Bounded { left: expected.size, source: file, cancel: sharing.cancel.clone() };
        let source = Counted { source, counters: Arc::clone(&counters) };
        let decoder = Decoder::new(source, expected.blob.algorithm(), sharing.limits.ratio).ahead();
        run(&sharing, decoder, &expected, &counters)
    });
    let extracted = blocking.await;
    let extracted = extracted.map_err(|e| fail(Class::Internal, format!("extracting the layer: {e}")))?;
    if extracted.is_err() && shared.cancel.reason().is_some() {
        return Err(fail(Class::Cancelled, "interrupted".into()));
    }
    let (staging, extracted) = extracted.map_err(|e| fail(e.class(), e.describe()))?;
    Ok(ReadyLayer { staging, extracted, blob: blob.clone() })
}

/// Extracts a layer that another process sends. The extracting thread reads the pipe directly, so a slow disk
/// throttles the sender and no data is queued in this process.
async fn from_pipe(
    shared: &Arc<Shared>,
    source: &Source,
    piped: Piped,
    expected: Expected,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, FetchFailure> {
    let fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(blob.digest.clone()),
        message,
    };
    let failure = Arc::new(OnceLock::new());
    let mut blocking = {
        let (sharing, counters, failure) = (Arc::clone(shared), Arc::clone(counters), Arc::clone(&failure));
        tokio::task::spawn_blocking(move || {
            let source = Transfer::new(piped, failure);
            let source = Counted { source, counters: Arc::clone(&counters) };
            let decoder = Decoder::new(source, expected.blob.algorithm(), sharing.limits.ratio).ahead();
            run(&sharing, decoder, &expected, &counters)
        })
    };
    let extracted = tokio::select! {
        extracted = &mut blocking => extracted,
        () = shared.cancel.cancelled() => {
            // The thread waits for data that a registry might never send.
            if let Source::Remote(remote) = source {
                remote.abort();
            }
            let _ = blocking.await;
            return Err(FetchFailure::Source(fail(Class::Cancelled, "interrupted".into())));
        }
    };
    let extracted = extracted
        .map_err(|e| FetchFailure::Local(fail(Class::Internal, format!("extracting the layer: {e}"))))?;
    // Return the reason why data is missing, and not only that it is.
    if extracted.is_err()
        && let Some((class, message)) = failure.get()
    {
        return Err(FetchFailure::Source(fail(*class, format!("fetching the layer: {message}"))));
    }
    let (staging, extracted) = extracted.map_err(|e| FetchFailure::of(&e, fail))?;
    Ok(ReadyLayer { staging, extracted, blob: blob.clone() })
}

/// Extracts a change set that an earlier run committed under another chain ID. Its tar is rebuilt from the
/// volume, and nothing is fetched.
pub(super) async fn reuse(
    shared: &Arc<Shared>,
    from: Layer,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, Fail> {
    let fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(from.blob.clone()),
        message,
    };
    let (layer, diff_id, size) = (from.clone(), from.diff_id.clone(), from.size);
    let (sharing, counters) = (Arc::clone(shared), Arc::clone(counters));
    let rebuilding = tokio::task::spawn_blocking(move || {
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
pub(super) async fn copy(
    shared: &Arc<Shared>,
    copy: SharedCopy,
    change: &ChangeSet,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<ReadyLayer, Fail> {
    let fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(blob.digest.clone()),
        message,
    };
    let SharedCopy { at, stored, lease } = copy;
    let ratio = shared.limits.ratio;
    if at.size > ratio.floor.max(blob.size.saturating_mul(ratio.max)) {
        return Err(fail(Class::Corrupt, format!("its record claims a tar of {} bytes", at.size)));
    }
    // It cannot be verified here, because the blob itself is not read.
    if at.compression != compression_of(&blob.media_type) {
        return Err(fail(
            Class::Corrupt,
            "its record and the manifest disagree about its compression".into(),
        ));
    }
    let (sharing, counters, diff_id) = (Arc::clone(shared), Arc::clone(counters), change.diff_id.clone());
    let rebuilding = tokio::task::spawn_blocking(move || {
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

/// Returns the compression in a layer's media type.
fn compression_of(media_type: &str) -> Compression {
    match media_type {
        gzip if gzip.ends_with("gzip") => Compression::Gzip,
        zstd if zstd.ends_with("zstd") => Compression::Zstd,
        _ => Compression::None,
    }
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
    let target = erofs::apply::Target {
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

/// Failure of an extraction, caused by the layer or the volume.
#[derive(Debug)]
pub(super) enum RunError {
    Layer(extract::Error),
    Volume(crate::volume::Error),
    Tree(trees::Error),
    Reading(io::Error),
    /// A layer of this volume is no longer there.
    ImageMissing,
}

impl RunError {
    pub(super) fn class(&self) -> Class {
        match self {
            RunError::Layer(e) => e.class(),
            RunError::Volume(e) => e.class(),
            RunError::Tree(e) => e.class(),
            RunError::Reading(e) if e.kind() == io::ErrorKind::InvalidData => Class::Corrupt,
            RunError::Reading(e) => larder_layer::error::io_class(e),
            RunError::ImageMissing => Class::Internal,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            RunError::Layer(e) => format!("extracting the layer: {e}"),
            RunError::Volume(e) => e.to_string(),
            RunError::Tree(e) => e.to_string(),
            RunError::Reading(e) => format!("reading the image of the layer: {e}"),
            RunError::ImageMissing => "the image of the layer is missing".into(),
        }
    }

    fn reading(source: io::Error) -> Self {
        RunError::Reading(source)
    }
}

/// Extracts one layer into a new staging directory, which is removed if this fails.
pub(super) fn run<S: ChunkSource>(
    shared: &Shared,
    decoder: Decoder<S>,
    expected: &Expected,
    counters: &Counters,
) -> Result<(Staging, Extracted), RunError> {
    // If there are many layers, each uses one processor. If processors are idle, a layer uses them to
    // decompress, hash and write.
    let cores = Cores::of_process();
    let _busy = cores.occupy();
    let decoder = decoder.with_cores(Arc::clone(&cores));
    let staging = shared.volume.stage().map_err(RunError::Volume)?;
    let split = shared.tar_split.then(|| TarSplitTarget { dir: staging.dir(), name: layout::TAR_SPLIT });
    let space: &dyn Space = &**staging.account();
    let (written, keep_replaced) = (&counters.written, shared.tar_split);
    let extracted = match shared.volume.format() {
        LayerFormat::Overlay => {
            let replaced = staging.replaced().map_err(RunError::Volume)?;
            let diff = staging.diff().map_err(RunError::Volume)?;
            let (replaced, rights, cores) = (&replaced, shared.rights, &*cores);
            let target =
                overlay::apply::Target { diff, replaced, space, rights, cores, written, keep_replaced };
            extract(decoder, Target::Overlay(target), split, &shared.limits, expected)
        }
        LayerFormat::Erofs => {
            let image = Image::New(staging.create_image(layout::IMAGE).map_err(RunError::Volume)?);
            let (dir, options) = (staging.dir(), shared.image_options(&expected.diff_id));
            let target = erofs::apply::Target { image, dir, space, options, written, keep_replaced };
            extract(decoder, Target::Erofs(target), split, &shared.limits, expected)
        }
    };
    let extracted = extracted.map_err(|e| RunError::Layer(e.explained(space)))?;
    if shared.volume.format() == LayerFormat::Overlay {
        staging.clear_replaced().map_err(RunError::Volume)?;
    }
    Ok((staging, extracted))
}
