//! One layer from wherever it can be had: this volume, a volume that is shared, or a registry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::events::Events;
use super::extraction::{self, Counters, Ready, Shared};
use super::failure::Fail;
use super::layers::Change;
use super::share::{self, At, Hold, Idle, Patience, Share, Turn, VolumeName};
use super::source::Source;
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::digest::Digest;
use larder_model::event::Event;
use larder_model::manifest::Descriptor;

/// How often a layer that another builder has in hand is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Layers that are being written, by blob.
#[derive(Clone, Debug, Default)]
pub(super) struct Running(Arc<Mutex<HashMap<Digest, Arc<Counters>>>>);

impl Running {
    /// The layers, now.
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Arc<Counters>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, or a place in the queue for one.
pub(super) type Place = BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>;

/// What getting any layer takes.
#[derive(Clone, Debug)]
pub(super) struct Acquire {
    pub(super) shared: Arc<Shared>,
    pub(super) share: Option<Arc<Share>>,
    pub(super) source: Source,
    pub(super) events: Events,
    /// Layers written at the same time. Who waits for another builder has none.
    pub(super) slots: Arc<Semaphore>,
    pub(super) running: Running,
    pub(super) idle: Arc<Idle>,
}

impl Acquire {
    /// Queues for a slot now: the tasks of a runtime begin in any order.
    pub(super) fn queue(&self) -> Place {
        let mut place = Arc::clone(&self.slots).acquire_owned().boxed();
        match (&mut place).now_or_never() {
            Some(slot) => std::future::ready(slot).boxed(),
            None => place,
        }
    }

    /// Extracts a layer that `images` need into a staging directory.
    pub(super) async fn layer(
        &self,
        place: Place,
        change: &Change,
        images: Vec<String>,
    ) -> Result<Ready, Fail> {
        let result = self.anywhere(place, change, images).await;
        self.idle.finished();
        result
    }

    async fn anywhere(&self, mut place: Place, change: &Change, images: Vec<String>) -> Result<Ready, Fail> {
        let cancelled = || Fail::job(Class::Cancelled, "interrupted");
        let Some((_, blob)) = change.sources.first() else {
            return Err(Fail::job(Class::Internal, "a layer without a source"));
        };
        let mut patience = Patience::new(&self.idle);
        let mut refused: Vec<VolumeName> = Vec::new();
        loop {
            let slot = tokio::select! {
                slot = &mut place => slot.map_err(|_| cancelled())?,
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
                self.reused(blob, change, from, size);
                return Ok(ready);
            }
            let waits = self.share.as_ref().is_none_or(|share| share.waits());
            match self.turn(change, &refused, patience.lasts()).await {
                Some(Turn::Locked | Turn::Ready) if !waits => {
                    return self.fetched(change, blob, images, None).await;
                }
                Some(Turn::Locked) => patience.go_on(),
                Some(Turn::Ready) => patience.wait(Instant::now()),
                Some(Turn::At(at)) => {
                    patience.go_on();
                    let volume = at.volume.clone();
                    match self.copied(change, blob, &images, at).await {
                        Ok(Some(ready)) => return Ok(ready),
                        Ok(None) => {}
                        Err(fail) if fail.class == Class::Cancelled => return Err(fail),
                        Err(fail) => self.events.emit(Event::Warning {
                            message: format!(
                                "layer {} is fetched, for it cannot be taken from the volume {volume}: {}",
                                blob.digest, fail.message
                            ),
                        }),
                    }
                    refused.push(volume);
                    place = std::future::ready(Ok(slot)).boxed();
                    continue;
                }
                Some(Turn::Fetch(hold)) => {
                    patience.go_on();
                    return self.fetched(change, blob, images, Some(hold)).await;
                }
                None => return self.fetched(change, blob, images, None).await,
            }
            drop(slot);
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.shared.cancel.cancelled() => return Err(cancelled()),
            }
            place = self.queue();
        }
    }

    /// Whose turn it is; nothing where layers are not shared, or cannot be.
    async fn turn(&self, change: &Change, refused: &[VolumeName], patient: bool) -> Option<Turn> {
        let diff_id = change.diff_id.clone();
        let refused = refused.to_vec();
        let turn = self.blocking(move |share| share.look(&diff_id, &refused, patient)).await?;
        match turn {
            Ok(turn) => Some(turn),
            Err(error) => {
                let message = format!("layer {} is not shared: {error}", change.diff_id);
                self.events.emit(Event::Warning { message });
                None
            }
        }
    }

    /// A layer from another volume; nothing where the one there came from another blob, of which nobody has proven here that
    /// it is the same layer.
    async fn copied(
        &self,
        change: &Change,
        blob: &Descriptor,
        images: &[String],
        at: At,
    ) -> Result<Option<Ready>, Fail> {
        if at.blob != blob.digest {
            return Ok(None);
        }
        let (from, size) = (at.volume.to_string(), at.size);
        let fail = |message: String| Fail {
            class: Class::Corrupt,
            images: Vec::new(),
            layer: Some(blob.digest.clone()),
            message,
        };
        let diff_id = change.diff_id.clone();
        let Some(copy) = self.blocking(move |share| share.copy(at, &diff_id)).await else { return Ok(None) };
        let copy = copy.map_err(|e| fail(e.to_string()))?;
        let counters = self.start(blob.digest.clone(), blob.size, images.to_vec(), Some(from.clone()));
        let ready = extraction::copy(&self.shared, copy, change, blob, &counters).await;
        self.running.lock().remove(&blob.digest);
        let ready = ready?;
        self.reused(blob.digest.clone(), change, from, size);
        Ok(Some(ready))
    }

    async fn fetched(
        &self,
        change: &Change,
        blob: &Descriptor,
        images: Vec<String>,
        hold: Option<Hold>,
    ) -> Result<Ready, Fail> {
        let counters = self.start(blob.digest.clone(), blob.size, images, None);
        let ready = extraction::fetch(&self.shared, &self.source, change, &counters, &self.events).await;
        self.running.lock().remove(&blob.digest);
        let ready = ready?;
        // Without a tar-split file nobody else can have it.
        if let Some(hold) = hold
            && ready.extracted.tar_split_size.is_some()
            && let Some(Err(error)) = self.blocking(move |share| share.ready(hold)).await
        {
            tracing::warn!(layer = %blob.digest, %error, "sharing a layer");
        }
        Ok(ready)
    }

    /// A layer of this volume cannot be read any more. It was proven when it was written, so the disk is to blame and not the
    /// image: the layer is given up, and the next run fetches it.
    fn damaged(&self, layer: ChainId, fail: Fail) -> Fail {
        // Nothing but this volume was read: a failure that is none of room, rights or a stop is one of its bytes.
        let of_bytes = matches!(fail.class, Class::Corrupt | Class::Internal | Class::Transient);
        if !of_bytes || self.shared.cancel.reason().is_some() {
            return fail;
        }
        let message = format!(
            "layer {layer} on the volume is damaged ({}); it was given up: check the disk, and run the build again to fetch it",
            fail.message
        );
        match self.shared.volume.mark_lost(vec![layer]) {
            Ok(()) => Fail { class: Class::Transient, message, ..fail },
            Err(e) => Fail::from(e),
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

    fn reused(&self, blob: Digest, change: &Change, from: String, size: u64) {
        self.events.emit(Event::LayerReused { blob, diff_id: change.diff_id.clone(), from, size });
    }

    /// Runs `work` where it may block; nothing where layers are not shared.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Share) -> Result<T, share::Error> + Send + 'static,
    ) -> Option<Result<T, share::Error>> {
        let share = Arc::clone(self.share.as_ref()?);
        let done = tokio::task::spawn_blocking(move || work(&share)).await;
        Some(done.unwrap_or_else(|e| Err(share::Error::Ended(e.to_string()))))
    }
}
