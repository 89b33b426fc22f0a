//! The pipeline of the layers: fetches and extracts them in parallel, commits them in chain order, and
//! flushes the volume.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::acquire::{Acquire, RunningLayers};
use super::commit;
use super::events::Events;
use super::extraction::{ReadyLayer, Shared};
use super::flushing::{Flusher, flush};
use super::layers::{ChainLayer, ChangeSet, Layers};
use super::publish::Publisher;
use super::share::{IdleTracker, Share};
use super::source::Source;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::{Event, Failure, milliseconds};
use larder_model::reference::ImageReference;

/// Interval of progress events.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// State that the pipeline needs.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// State of the blocking side.
    pub(super) shared: Arc<Shared>,
    /// Volumes that share layers with this build; `None` if layers are not shared.
    pub(super) share: Option<Arc<Share>>,
    /// Source of the blobs.
    pub(super) source: Source,
    /// Receiver of progress events.
    pub(super) events: Events,
    /// Maximum number of layers extracted at the same time.
    pub(super) concurrency: usize,
    /// The references of the job, as given.
    pub(super) images: Vec<ImageReference>,
}

struct Progress {
    pending: Vec<ChainLayer>,
    ready: HashMap<Digest, ReadyLayer>,
    failed_images: HashSet<usize>,
    failures: Vec<Failure>,
    publish: Publisher,
}

impl Pipeline {
    /// Commits all `layers` to the volume.
    ///
    /// # Errors
    /// All failures that occurred.
    pub(super) async fn run(&self, layers: Layers) -> Result<(), Vec<Failure>> {
        let volume = &self.shared.volume;
        let mut publish = Publisher::new(self.share.clone());
        // A builder that was killed might have committed layers without publishing them.
        for layer in layers.links.iter().filter_map(|link| volume.layer(&link.chain_id)) {
            publish.layer(layer);
        }
        let pending: Vec<ChainLayer> =
            layers.links.into_iter().filter(|link| !volume.has(&link.chain_id)).collect();
        let wanted: HashSet<Digest> = pending.iter().map(|link| link.diff_id.clone()).collect();
        let changes = layers.changes.into_iter().filter(|change| wanted.contains(&change.diff_id));

        let acquire = Acquire {
            shared: Arc::clone(&self.shared),
            share: self.share.clone(),
            source: self.source.clone(),
            events: self.events.clone(),
            slots: Arc::new(Semaphore::new(self.concurrency.max(1))),
            running: RunningLayers::default(),
            idle: IdleTracker::new(wanted.len()),
        };
        let mut tasks = JoinSet::new();
        let ticker = self.tick(acquire.running.clone());
        let mut progress = Progress {
            pending,
            ready: HashMap::new(),
            failed_images: HashSet::new(),
            failures: Vec::new(),
            publish,
        };
        for change in changes {
            self.start(&mut tasks, change, &acquire);
        }
        let mut flusher = Flusher::start(Arc::clone(volume), self.events.clone());
        loop {
            let joined = tokio::select! {
                joined = tasks.join_next() => joined,
                fail = flusher.failed() => {
                    self.note(&mut progress, &[], fail);
                    break;
                }
            };
            let Some(joined) = joined else { break };
            let (change, result) = match joined {
                Ok(done) => done,
                Err(e) if e.is_cancelled() => continue,
                Err(e) => {
                    progress
                        .failures
                        .push(Failure::job(Class::Internal, format!("the task of a layer failed: {e}")));
                    break;
                }
            };
            let failed = match result {
                Ok(ready) => {
                    progress.ready.insert(change.diff_id.clone(), ready);
                    self.commit_ready(&mut progress).await
                }
                Err(fail) => vec![(change.images, fail)],
            };
            let mut proceed = true;
            for (images, fail) in failed {
                proceed &= self.note(&mut progress, &images, fail);
            }
            if !proceed {
                break;
            }
        }
        if !tasks.is_empty() {
            // Running tasks see the cancellation, remove their staging directories and end.
            self.shared.cancel.stop();
            while let Some(joined) = tasks.join_next().await {
                if let Ok((change, Err(fail))) = joined
                    && fail.class != Class::Cancelled
                {
                    self.note(&mut progress, &change.images, fail);
                }
            }
        }
        ticker.abort();
        self.finish(progress, flusher).await
    }

    fn start(
        &self,
        tasks: &mut JoinSet<(ChangeSet, Result<ReadyLayer, Failure>)>,
        change: ChangeSet,
        acquire: &Acquire,
    ) {
        let acquire = acquire.clone();
        let images = self.references(&change.images);
        let queued = acquire.queue();
        tasks.spawn(async move {
            let result = acquire.layer(queued, &change, images).await;
            (change, result)
        });
    }

    /// Commits every layer whose parent is on the volume, until there are none. Returns the failures with the
    /// affected images.
    async fn commit_ready(&self, progress: &mut Progress) -> Vec<(Vec<usize>, Failure)> {
        let volume = &self.shared.volume;
        let mut failed = Vec::new();
        loop {
            let next = progress.pending.iter().position(|link| {
                progress.ready.contains_key(&link.diff_id)
                    && link.parent.as_ref().is_none_or(|parent| volume.has(parent))
            });
            let Some(at) = next else { return failed };
            let link = progress.pending.remove(at);
            let Some(ready) = progress.ready.remove(&link.diff_id) else { return failed };
            let keep = progress.pending.iter().any(|other| other.diff_id == link.diff_id);
            let (blob, size) = (ready.blob.digest.clone(), ready.extracted.decoded.size);
            let entries = ready.extracted.applied.entries;
            let started = Instant::now();
            let shared = Arc::clone(&self.shared);
            let committing = link.clone();
            let task = crate::blocking::spawn(move || commit::commit(&shared, &committing, ready, keep));
            let result = task.await.unwrap_or_else(|e| {
                Err(Failure::job(Class::Internal, format!("committing {}: {e}", link.chain_id)))
            });
            match result {
                Ok(rest) => {
                    if let Some(rest) = rest {
                        progress.ready.insert(link.diff_id.clone(), rest);
                    }
                    self.events.emit(Event::LayerCommitted {
                        blob,
                        diff_id: Some(link.diff_id),
                        chain_id: link.chain_id.clone(),
                        size,
                        entries,
                        elapsed_ms: milliseconds(started.elapsed()),
                    });
                    if let Some(layer) = volume.layer(&link.chain_id) {
                        progress.publish.layer(layer);
                    }
                }
                Err(fail) => failed.push((link.images, fail)),
            }
        }
    }

    /// Records a failure for all images that need the layer. Returns `false` if no other layer can be
    /// completed.
    fn note(&self, progress: &mut Progress, images: &[usize], mut fail: Failure) -> bool {
        progress.failed_images.extend(images.iter().copied());
        for reference in self.references(images) {
            if !fail.images.contains(&reference) {
                fail.images.push(reference);
            }
        }
        let proceed = spares_others(&fail) && progress.failed_images.len() < self.images.len();
        progress.failures.push(fail);
        proceed
    }

    async fn finish(&self, mut progress: Progress, flusher: Flusher) -> Result<(), Vec<Failure>> {
        if let Err(fail) = flusher.stop().await {
            progress.failures.push(fail);
        }
        progress.publish.finish().await;
        if progress.failures.is_empty() && progress.pending.is_empty() {
            return Ok(());
        }
        // Staged layers are dropped and committed ones stay. Flush them for the next run.
        progress.ready.clear();
        if let Err(fail) = flush(&self.shared.volume, &self.events).await {
            progress.failures.push(fail);
        }
        if progress.failures.is_empty() {
            let message = format!("{} layers could not be committed", progress.pending.len());
            progress.failures.push(Failure::job(Class::Internal, message));
        }
        Err(progress.failures)
    }

    fn references(&self, images: &[usize]) -> Vec<String> {
        images.iter().filter_map(|at| self.images.get(*at)).map(|image| image.given().to_owned()).collect()
    }

    /// Emits the progress of every running layer until the task is aborted.
    fn tick(&self, running: RunningLayers) -> JoinHandle<()> {
        let events = self.events.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(PROGRESS_EVERY);
            loop {
                interval.tick().await;
                for (blob, counters) in running.lock().iter() {
                    events.emit(Event::LayerProgress {
                        blob: blob.clone(),
                        received: counters.received.load(Ordering::Relaxed),
                        written: counters.written.load(Ordering::Relaxed),
                    });
                }
            }
        })
    }
}

/// Reports whether other layers can still be completed.
fn spares_others(failure: &Failure) -> bool {
    matches!(
        failure.class,
        Class::Corrupt | Class::NotFound | Class::Invalid | Class::Denied | Class::Transient
    ) && !failure.images.is_empty()
}
