//! Acquires one layer from any source: this volume, a shared volume or a registry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::events::Events;
use super::extraction::{self, Counters, ReadyLayer, Shared};
use super::layers::ChangeSet;
use super::share::{self, Claim, IdleTracker, LayerLocation, LayerLock, Share, WaitLimit};
use super::source::Source;
use super::volume_name::VolumeName;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::{Event, Failure};
use larder_model::manifest::Descriptor;

/// Interval for polling a layer that another builder is fetching.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Layers that are being written, by blob.
#[derive(Clone, Debug, Default)]
pub(super) struct RunningLayers(Arc<Mutex<HashMap<Digest, Arc<Counters>>>>);

impl RunningLayers {
    /// Locks and returns the layers.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Counters>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, or a position in the queue for one.
pub(super) type QueuedSlot = BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>;

/// Shared state to acquire any layer.
#[derive(Clone, Debug)]
pub(super) struct Acquire {
    pub(super) shared: Arc<Shared>,
    pub(super) share: Option<Arc<Share>>,
    pub(super) source: Source,
    pub(super) events: Events,
    /// Limits the layers written at the same time. A layer that waits for another builder has no slot.
    pub(super) slots: Arc<Semaphore>,
    pub(super) running: RunningLayers,
    pub(super) idle: Arc<IdleTracker>,
}

impl Acquire {
    /// Queues for a slot now, because the tasks of a runtime start in any order.
    pub(super) fn queue(&self) -> QueuedSlot {
        let mut queued = Arc::clone(&self.slots).acquire_owned().boxed();
        match (&mut queued).now_or_never() {
            Some(slot) => std::future::ready(slot).boxed(),
            None => queued,
        }
    }

    /// Extracts a layer that `images` need into a staging directory.
    pub(super) async fn layer(
        &self,
        queued: QueuedSlot,
        change: &ChangeSet,
        images: Vec<String>,
    ) -> Result<ReadyLayer, Failure> {
        let result = self.anywhere(queued, change, images).await;
        self.idle.finished();
        result
    }

    async fn anywhere(
        &self,
        mut queued: QueuedSlot,
        change: &ChangeSet,
        images: Vec<String>,
    ) -> Result<ReadyLayer, Failure> {
        let cancelled = || Failure::job(Class::Cancelled, "interrupted");
        let Some((_, blob)) = change.sources.first() else {
            return Err(Failure::job(Class::Internal, "a layer without a source"));
        };
        let mut wait_limit = WaitLimit::new(&self.idle);
        let mut refused: Vec<VolumeName> = Vec::new();
        loop {
            let slot = tokio::select! {
                slot = &mut queued => slot.map_err(|_| cancelled())?,
                () = self.shared.cancel.cancelled() => return Err(cancelled()),
            };
            if let Some(layer) = self.shared.volume.with_diff_id(&change.diff_id) {
                let (from, blob) = (self.shared.volume.name(), layer.blob.clone());
                let chain_id = layer.chain_id.clone();
                let size = layer.size;
                let counters = self.start(blob.clone(), layer.compressed_size, images, Some(from.clone()));
                let ready = extraction::reuse(&self.shared, layer, &counters).await;
                self.running.lock().remove(&blob);
                let ready = ready.map_err(|fail| self.damaged(chain_id, fail))?;
                self.events.emit(counters.extracted(blob.clone()));
                self.reused(blob, change, from, size);
                return Ok(ready);
            }
            let waits = self.share.as_ref().is_none_or(|share| share.waits());
            match self.claim(change, &refused, wait_limit.has_time_left()).await {
                Some(Claim::Locked | Claim::Ready) if !waits => {
                    return self.fetched(change, blob, images, None).await;
                }
                Some(Claim::Locked) => wait_limit.stop_waiting(),
                Some(Claim::Ready) => wait_limit.wait(Instant::now()),
                Some(Claim::Available(at)) => {
                    wait_limit.stop_waiting();
                    let volume = at.volume.clone();
                    match self.copied(change, blob, &images, at).await {
                        Ok(Some(ready)) => return Ok(ready),
                        Ok(None) => {}
                        Err(fail) if fail.class == Class::Cancelled => return Err(fail),
                        Err(fail) => self.events.emit(Event::Warning {
                            message: format!(
                                "fetching layer {}: cannot reuse it from volume {volume}: {}",
                                blob.digest, fail.message
                            ),
                        }),
                    }
                    refused.push(volume);
                    queued = std::future::ready(Ok(slot)).boxed();
                    continue;
                }
                Some(Claim::Fetch(lock)) => {
                    wait_limit.stop_waiting();
                    return self.fetched(change, blob, images, Some(lock)).await;
                }
                None => return self.fetched(change, blob, images, None).await,
            }
            drop(slot);
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = self.shared.cancel.cancelled() => return Err(cancelled()),
            }
            queued = self.queue();
        }
    }

    /// Determines where the layer comes from; `None` if layers are not shared or cannot be.
    async fn claim(&self, change: &ChangeSet, refused: &[VolumeName], may_wait: bool) -> Option<Claim> {
        let diff_id = change.diff_id.clone();
        let refused = refused.to_vec();
        let claim = self.blocking(move |share| share.claim(&diff_id, &refused, may_wait)).await?;
        match claim {
            Ok(claim) => Some(claim),
            Err(error) => {
                let message = format!("cannot share layer {}: {error}", change.diff_id);
                self.events.emit(Event::Warning { message });
                None
            }
        }
    }

    /// Copies a layer from another volume. Returns `None` if the layer there came from another blob: nothing
    /// here verified that both blobs contain the same layer.
    async fn copied(
        &self,
        change: &ChangeSet,
        blob: &Descriptor,
        images: &[String],
        at: LayerLocation,
    ) -> Result<Option<ReadyLayer>, Failure> {
        if at.blob != blob.digest {
            return Ok(None);
        }
        let (from, size) = (at.volume.to_string(), at.size);
        let fail = |message: String| Failure::layer(&blob.digest, Class::Corrupt, message);
        let diff_id = change.diff_id.clone();
        let Some(copy) = self.blocking(move |share| share.copy(at, &diff_id)).await else { return Ok(None) };
        let copy = copy.map_err(|e| fail(e.to_string()))?;
        let counters = self.start(blob.digest.clone(), blob.size, images.to_vec(), Some(from.clone()));
        let ready = extraction::copy(&self.shared, copy, change, blob, &counters).await;
        self.running.lock().remove(&blob.digest);
        let ready = ready?;
        self.events.emit(counters.extracted(blob.digest.clone()));
        self.reused(blob.digest.clone(), change, from, size);
        Ok(Some(ready))
    }

    async fn fetched(
        &self,
        change: &ChangeSet,
        blob: &Descriptor,
        images: Vec<String>,
        lock: Option<LayerLock>,
    ) -> Result<ReadyLayer, Failure> {
        let counters = self.start(blob.digest.clone(), blob.size, images, None);
        let ready = extraction::fetch(&self.shared, &self.source, change, &counters, &self.events).await;
        self.running.lock().remove(&blob.digest);
        let ready = ready?;
        self.events.emit(counters.extracted(blob.digest.clone()));
        // Without a tar-split file other builders cannot use it.
        if let Some(lock) = lock
            && ready.extracted.tar_split_size.is_some()
            && let Some(Err(error)) = self.blocking(move |share| share.ready(lock)).await
        {
            tracing::warn!(layer = %blob.digest, %error, "cannot share a layer");
        }
        Ok(ready)
    }

    /// Discards a layer of this volume that can no longer be read. It was verified when it was written, so
    /// the cause is the disk and not the image. The next run fetches it.
    fn damaged(&self, layer: ChainId, fail: Failure) -> Failure {
        // Only this volume was read. So an error that is not about space, permissions or a stop is one of its
        // data.
        let of_bytes = matches!(fail.class, Class::Corrupt | Class::Internal | Class::Transient);
        if !of_bytes || self.shared.cancel.reason().is_some() {
            return fail;
        }
        let message = format!(
            "layer {layer} on the volume is damaged ({}) and was discarded: check the disk, and run the build again to fetch it",
            fail.message
        );
        match self.shared.volume.mark_lost(vec![layer]) {
            Ok(()) => Failure { class: Class::Transient, message, explanation: None, ..fail },
            Err(e) => Failure::from(e),
        }
    }

    fn start(
        &self,
        blob: Digest,
        compressed_size: u64,
        images: Vec<String>,
        from: Option<String>,
    ) -> Arc<Counters> {
        let counters = Arc::new(Counters::default());
        self.running.lock().insert(blob.clone(), Arc::clone(&counters));
        self.events.emit(Event::LayerStarted { blob, compressed_size, images, from });
        counters
    }

    fn reused(&self, blob: Digest, change: &ChangeSet, from: String, size: u64) {
        self.events.emit(Event::LayerReused { blob, diff_id: change.diff_id.clone(), from, size });
    }

    /// Runs `work` on a thread that can block; `None` if layers are not shared.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Share) -> Result<T, share::Error> + Send + 'static,
    ) -> Option<Result<T, share::Error>> {
        let share = Arc::clone(self.share.as_ref()?);
        let done = crate::blocking::spawn(move || work(&share)).await;
        Some(done.unwrap_or_else(|e| Err(share::Error::Ended(e.to_string()))))
    }
}
