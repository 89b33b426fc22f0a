//! Extraction of one layer. An async side moves chunks from the registry, and a blocking side extracts them.
//! A small bounded channel between them makes a slow disk throttle the socket.

mod error;
mod reuse;
mod sources;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::cancel::Cancel;
use super::events::Events;
use super::layers::ChangeSet;
use super::remote::Piped;
use super::source::{Blob, Source};
use crate::archive;
use crate::volume::budget::Account;
use crate::volume::staging::Staging;
use crate::volume::{Volume, layout};
pub(super) use error::RunError;
use larder_layer::cores::Cores;
use larder_layer::decode::Decoder;
use larder_layer::erofs_sink::apply::Image;
use larder_layer::extract::{Expected, Extracted, TarSplitTarget, Target, extract};
use larder_layer::limits::Limits;
use larder_layer::overlay::attributes::Rights;
use larder_layer::space::Space;
use larder_layer::{erofs, erofs_sink, overlay};
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::{Event, Failure, milliseconds};
use larder_model::job::LayerFormat;
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;
use larder_model::shortage::Shortage;
pub(super) use reuse::{copy, reuse};
pub(super) use sources::Bounded;
use sources::{Counted, Message, Received, Timed, Transfer};

/// Maximum number of chunks in the channel. A chunk is one read from the socket, so this limits memory to a
/// few MiB per layer.
const MAX_CHUNKS: usize = 8;

/// Progress of a layer.
#[derive(Debug)]
pub(super) struct Counters {
    /// Number of compressed bytes received.
    pub(super) received: AtomicU64,
    /// Number of content bytes written.
    pub(super) written: AtomicU64,
    /// Start of the transfer.
    started: Instant,
    /// Time from the start until the last byte, milliseconds.
    received_ms: AtomicU64,
    /// Time in which the extraction waited for data, nanoseconds.
    waited_ns: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            received: AtomicU64::new(0),
            written: AtomicU64::new(0),
            started: Instant::now(),
            received_ms: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// Returns the event for an extracted layer.
    pub(super) fn extracted(&self, blob: Digest) -> Event {
        Event::LayerExtracted {
            blob,
            received_ms: self.received_ms.load(Ordering::Relaxed),
            waited_ms: self.waited_ns.load(Ordering::Relaxed) / 1_000_000,
        }
    }

    /// Records that the extraction waited for a chunk, or for the end of the data.
    fn waited(&self, waited: Duration, is_end: bool) {
        let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.waited_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        if is_end {
            self.received_ms.store(milliseconds(self.started.elapsed()), Ordering::Relaxed);
        }
    }
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
) -> Result<ReadyLayer, Failure> {
    let mut first_failure: Option<Failure> = None;
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
            if let Some(Failure { message, .. }) = corrupted {
                events.emit(Event::Warning {
                    message: format!("layer {}: {message}; trying another host", at.1.digest),
                });
            }
            return fetched;
        }
    }
    Err(first_failure.unwrap_or_else(|| Failure::job(Class::Internal, "a layer without a source")))
}

/// The origin of a failure.
enum FetchFailure {
    /// The source did not deliver the blob.
    Source(Failure),
    /// The received data is not that of the blob.
    Corrupted(Failure),
    Local(Failure),
}

impl FetchFailure {
    /// Classifies the error of an extraction.
    fn of(error: &RunError, fail: impl FnOnce(Class, String) -> Failure) -> Self {
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
    let fail = |class: Class, message: String| Failure::layer(&blob.digest, class, message);
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
        crate::blocking::spawn(move || {
            let source = Timed { source: Received(receiver), counters: Arc::clone(&counters) };
            let decoder = Decoder::new(source, expected.blob.algorithm(), shared.limits.ratio);
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
            Err(e) => {
                let failure = fail(e.class(), format!("fetching the layer: {e}"));
                break Err(failure.explained("fetching it", Some(e.explanation())));
            }
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
    let fail =
        |class: Class, message: String| FetchFailure::Local(Failure::layer(&blob.digest, class, message));
    let (sharing, counters) = (Arc::clone(shared), Arc::clone(counters));
    let blocking = crate::blocking::spawn(move || {
        let source = Bounded { left: expected.size, source: file, cancel: sharing.cancel.clone() };
        let source = Timed { source, counters: Arc::clone(&counters) };
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
    let fail = |class: Class, message: String| Failure::layer(&blob.digest, class, message);
    let failure = Arc::new(OnceLock::new());
    let mut blocking = {
        let (sharing, counters, failure) = (Arc::clone(shared), Arc::clone(counters), Arc::clone(&failure));
        crate::blocking::spawn(move || {
            let source = Transfer::new(piped, failure);
            let source = Timed { source, counters: Arc::clone(&counters) };
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
        && let Some(error) = failure.get()
    {
        let failure = fail(error.class(), format!("fetching the layer: {error}"));
        return Err(FetchFailure::Source(failure.explained("fetching it", error.explanation())));
    }
    let (staging, extracted) = extracted.map_err(|e| FetchFailure::of(&e, fail))?;
    Ok(ReadyLayer { staging, extracted, blob: blob.clone() })
}

/// Extracts one layer into a new staging directory. If this fails, the directory is removed, on disks by the
/// next run.
pub(super) fn run(
    shared: &Shared,
    decoder: Decoder<'_>,
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
            let target = erofs_sink::apply::Target { image, dir, space, options, written, keep_replaced };
            extract(decoder, Target::Erofs(target), split, &shared.limits, expected)
        }
    };
    let extracted = extracted.map_err(|e| RunError::Layer(e.explained(space)))?;
    if shared.volume.format() == LayerFormat::Overlay {
        staging.clear_replaced().map_err(RunError::Volume)?;
    }
    Ok((staging, extracted))
}
