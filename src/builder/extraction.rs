//! One layer on its way: an async side that moves chunks from the registry, a blocking side that extracts them, and a small
//! bounded channel between, so that a slow disk stops the socket.

mod sources;

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::mpsc;

use super::cancel::Cancel;
use super::events::Events;
use super::failure::Fail;
use super::layers::Change;
use super::remote::Piped;
use super::share::{Copy, Lies};
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

/// Chunks between the two sides. A chunk is what the socket gave at once, so this bounds memory to a few MiB a layer.
const CHUNKS: usize = 8;

/// How far a layer is.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Compressed bytes received.
    pub(super) received: AtomicU64,
    /// Bytes of content written.
    pub(super) written: AtomicU64,
}

/// What all layers of a build share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Where layers go.
    pub(super) volume: Arc<Volume>,
    /// What this process can write.
    pub(super) rights: Rights,
    /// Limits on members and sizes.
    pub(super) limits: Limits,
    /// Whether tar-split files are written.
    pub(super) tar_split: bool,
    /// Whether images get hash trees.
    pub(super) verity: bool,
    /// Ends the work.
    pub(super) cancel: Cancel,
}

impl Shared {
    /// How the image of a change set is written.
    fn image_options(&self, diff_id: &Digest) -> erofs::Options {
        erofs::Options { verity: self.verity, ..erofs::Options::of(diff_id) }
    }
}

/// A layer that is extracted and verified, and waits for its parents.
#[derive(Debug)]
pub(super) struct Ready {
    /// Its directory.
    pub(super) staging: Staging,
    /// What is to be settled, digests and sizes.
    pub(super) extracted: Extracted,
    /// The blob it came from.
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

/// Fetches a change set from the first repository and host that have it, and extracts it.
pub(super) async fn fetch(
    shared: &Arc<Shared>,
    source: &Source,
    change: &Change,
    counters: &Arc<Counters>,
    events: &Events,
) -> Result<Ready, Fail> {
    let mut first_failure: Option<Fail> = None;
    for at in &change.sources {
        let mut spoilt = None;
        for skipped in 0.. {
            let fetched = match fetch_from(shared, source, change, at, skipped, counters).await {
                // The next host may have the right bytes.
                Err(Failed::Spoilt(fail)) => {
                    spoilt.get_or_insert(fail);
                    continue;
                }
                // No further host, or none that has it. Another repository may have it, or let us have it.
                Err(Failed::Source(fail)) if matches!(fail.class, Class::NotFound | Class::Denied) => {
                    first_failure = first_failure.or(spoilt).or(Some(fail));
                    break;
                }
                Err(Failed::Source(fail) | Failed::Here(fail)) => Err(fail),
                Ok(ready) => Ok(ready),
            };
            if let Some(Fail { message, .. }) = spoilt {
                events.emit(Event::Warning {
                    message: format!("layer {}: {message}; another host was asked", at.1.digest),
                });
            }
            return fetched;
        }
    }
    Err(first_failure.unwrap_or_else(|| Fail::job(Class::Internal, "a layer without a source")))
}

/// Whose failure it is.
enum Failed {
    /// The blob does not come.
    Source(Fail),
    /// The bytes that came are not those of the blob.
    Spoilt(Fail),
    Here(Fail),
}

impl Failed {
    /// The failure of an extraction.
    fn of(error: &RunError, fail: impl FnOnce(Class, String) -> Fail) -> Self {
        let fail = fail(error.class(), error.describe());
        match error {
            RunError::Layer(error) if error.is_blob_mismatch() => Failed::Spoilt(fail),
            _ => Failed::Here(fail),
        }
    }
}

async fn fetch_from(
    shared: &Arc<Shared>,
    source: &Source,
    change: &Change,
    (reference, blob): &(ImageReference, Descriptor),
    skipped: usize,
    counters: &Arc<Counters>,
) -> Result<Ready, Failed> {
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
        Err(e) => return Err(Failed::Source(fail(e.class(), e.to_string()))),
    };
    let (sender, receiver) = mpsc::channel(CHUNKS);
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
        // A closed channel means that the other side has failed; its error is the one to tell.
        if sender.send(message).await.is_err() || is_end {
            break Ok(());
        }
    };
    drop(sender);
    let extracted = blocking.await;
    let extracted =
        extracted.map_err(|e| Failed::Here(fail(Class::Internal, format!("extracting the layer: {e}"))))?;
    fetched.map_err(Failed::Source)?;
    let (staging, extracted) = extracted.map_err(|e| Failed::of(&e, fail))?;
    Ok(Ready { staging, extracted, blob: blob.clone() })
}

/// Extracts a layer that lies in a file: there is no network to wait for, so it is read where it is extracted.
async fn from_file(
    shared: &Arc<Shared>,
    file: archive::Blob,
    expected: Expected,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<Ready, Failed> {
    let fail = |class: Class, message: String| {
        Failed::Here(Fail { class, images: Vec::new(), layer: Some(blob.digest.clone()), message })
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
    Ok(Ready { staging, extracted, blob: blob.clone() })
}

/// Extracts a layer whose bytes another process sends. The thread that extracts reads the pipe itself, so a slow disk stops the
/// sender and no byte waits in this process.
async fn from_pipe(
    shared: &Arc<Shared>,
    source: &Source,
    piped: Piped,
    expected: Expected,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<Ready, Failed> {
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
            // The thread waits for bytes that a registry may never send.
            if let Source::Remote(remote) = source {
                remote.abort();
            }
            let _ = blocking.await;
            return Err(Failed::Source(fail(Class::Cancelled, "interrupted".into())));
        }
    };
    let extracted =
        extracted.map_err(|e| Failed::Here(fail(Class::Internal, format!("extracting the layer: {e}"))))?;
    // The reason why bytes are missing, not that they are.
    if extracted.is_err()
        && let Some((class, message)) = failure.get()
    {
        return Err(Failed::Source(fail(*class, format!("fetching the layer: {message}"))));
    }
    let (staging, extracted) = extracted.map_err(|e| Failed::of(&e, fail))?;
    Ok(Ready { staging, extracted, blob: blob.clone() })
}

/// Extracts a change set that an earlier run committed under another chain ID: its tar is rebuilt from the volume, no byte
/// is fetched.
pub(super) async fn reuse(
    shared: &Arc<Shared>,
    from: Layer,
    counters: &Arc<Counters>,
) -> Result<Ready, Fail> {
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
                let image = image.ok_or(RunError::Gone)?;
                let staging = volume.stage().map_err(RunError::Volume)?;
                let mut extracted = prove(&sharing, tar, diff_id, size, image, &staging, &counters)?;
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
    Ok(Ready { staging, extracted, blob })
}

/// Extracts a change set that another volume has: as [`reuse`], but nothing that is said of it is believed.
pub(super) async fn copy(
    shared: &Arc<Shared>,
    copy: Copy,
    change: &Change,
    blob: &Descriptor,
    counters: &Arc<Counters>,
) -> Result<Ready, Fail> {
    let fail = |class: Class, message: String| Fail {
        class,
        images: Vec::new(),
        layer: Some(blob.digest.clone()),
        message,
    };
    let Copy { at, lies, lease } = copy;
    let ratio = shared.limits.ratio;
    if at.size > ratio.floor.max(blob.size.saturating_mul(ratio.max)) {
        return Err(fail(Class::Corrupt, format!("a tar of {} bytes is said to be in it", at.size)));
    }
    // Bytes that nobody sees here cannot prove it.
    if at.compression != implied(&blob.media_type) {
        return Err(fail(Class::Corrupt, "its compression is not the one that the manifest says".into()));
    }
    let (sharing, counters, diff_id) = (Arc::clone(shared), Arc::clone(counters), change.diff_id.clone());
    let rebuilding = tokio::task::spawn_blocking(move || {
        let _lease = lease;
        match lies {
            Lies::Directory { diff, split } => {
                let tar = Rebuilt::new(split, StoredDir::Directory(diff));
                rebuild(&sharing, tar, diff_id, at.size, &counters)
            }
            Lies::Image { image, split, verity }
                if sharing.volume.format() == LayerFormat::Erofs && sharing.verity == verity =>
            {
                take(&sharing, &image, &split, diff_id, at.size, &counters)
            }
            Lies::Image { image, split, .. } => {
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
    Ok(Ready { staging, extracted, blob: blob.clone() })
}

/// The compression that a layer's media type ends in.
fn implied(media_type: &str) -> Compression {
    match media_type {
        gzip if gzip.ends_with("gzip") => Compression::Gzip,
        zstd if zstd.ends_with("zstd") => Compression::Zstd,
        _ => Compression::None,
    }
}

/// Extracts the tar of `size` bytes that `source` gives.
fn rebuild(
    shared: &Shared,
    source: Rebuilt,
    diff_id: Digest,
    size: u64,
    counters: &Counters,
) -> Result<(Staging, Extracted), RunError> {
    // What is decoded here is the tar itself.
    let expected = Expected { blob: diff_id.clone(), size, diff_id };
    let source = Bounded { source, left: size, cancel: shared.cancel.clone() };
    let decoder = Decoder::uncompressed(source, expected.blob.algorithm());
    run(shared, decoder, &expected, counters)
}

/// Takes the image of another volume as it is, once it is proven to be what its tar gives.
fn take(
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
    let own = |name| staging.image(name).map_err(RunError::Volume)?.ok_or(RunError::Gone);
    let split = own(layout::TAR_SPLIT)?;
    let split_size = split.metadata().map_err(RunError::reading)?.len();
    let tar = image_tar(own(layout::IMAGE)?, split)?;
    let mut extracted = prove(shared, tar, diff_id, size, own(layout::IMAGE)?, &staging, counters)?;
    extracted.tar_split_size = Some(split_size);
    Ok((staging, extracted))
}

/// Reads the tar of an image that is there already, and compares the image with what would have been written.
fn prove(
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

/// Extraction fails for reasons of the layer or of the volume.
#[derive(Debug)]
pub(super) enum RunError {
    Layer(extract::Error),
    Volume(crate::volume::Error),
    Tree(trees::Error),
    Reading(io::Error),
    /// A layer of this volume that is not there any more.
    Gone,
}

impl RunError {
    pub(super) fn class(&self) -> Class {
        match self {
            RunError::Layer(e) => e.class(),
            RunError::Volume(e) => e.class(),
            RunError::Tree(e) => e.class(),
            RunError::Reading(e) if e.kind() == io::ErrorKind::InvalidData => Class::Corrupt,
            RunError::Reading(e) => larder_layer::error::io_class(e),
            RunError::Gone => Class::Internal,
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            RunError::Layer(e) => format!("extracting the layer: {e}"),
            RunError::Volume(e) => e.to_string(),
            RunError::Tree(e) => e.to_string(),
            RunError::Reading(e) => format!("reading the image of the layer: {e}"),
            RunError::Gone => "the image of the layer has gone".into(),
        }
    }

    fn reading(source: io::Error) -> Self {
        RunError::Reading(source)
    }
}

/// Extracts one layer into a new staging directory, which is gone again if that fails.
pub(super) fn run<S: ChunkSource>(
    shared: &Shared,
    decoder: Decoder<S>,
    expected: &Expected,
    counters: &Counters,
) -> Result<(Staging, Extracted), RunError> {
    // Many layers take a processor each; one that leaves others idle inflates, hashes and writes content there.
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
