//! Periodic flushing of a volume while it is filled.
//!
//! By default the kernel keeps written data in memory for half a minute, or until it fills a tenth of the
//! memory (`vm.dirty_expire_centisecs`, `vm.dirty_background_ratio`). The disk would be idle, and the seal
//! would then wait for all of it. With periodic flushes, data is written while other data is still being
//! decompressed. After a power cut an unfinished build loses only what was not yet durable.

use std::future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::events::Events;
use crate::volume::Volume;
use larder_model::class::Class;
use larder_model::event::{Event, Failure, milliseconds};

/// Pause between two flushes. Shorter ones gain nothing, and a flush includes the data of other programs on
/// the same file system.
const PAUSE: Duration = Duration::from_secs(1);

/// The task that flushes, until it is stopped.
#[derive(Debug)]
pub(super) struct Flusher {
    stop: Arc<Notify>,
    /// `None` after its result was returned.
    task: Option<JoinHandle<Result<(), Failure>>>,
}

impl Flusher {
    /// Starts the task. It begins with a pause.
    pub(super) fn start(volume: Arc<Volume>, events: Events) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => flush(&volume, &events).await?,
                    () = stopped.notified() => return Ok(()),
                }
            }
        });
        Flusher { stop, task: Some(task) }
    }

    /// Waits for a flush to fail. After that no data on the volume can be trusted.
    pub(super) async fn failed(&mut self) -> Failure {
        if let Some(task) = &mut self.task {
            let ended = task.await;
            self.task = None;
            if let Err(fail) = ended.unwrap_or_else(|e| Err(panicked(&e))) {
                return fail;
            }
        }
        future::pending().await
    }

    /// Stops the task. Waits for a flush in progress, so that its error is not lost.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        self.stop.notify_one();
        match self.task {
            Some(task) => task.await.unwrap_or_else(|e| Err(panicked(&e))),
            None => Ok(()),
        }
    }
}

/// Flushes the volume and reports the layers that became durable.
pub(super) async fn flush(volume: &Arc<Volume>, events: &Events) -> Result<(), Failure> {
    let (volume, began) = (Arc::clone(volume), Instant::now());
    let layers = crate::blocking::spawn(move || volume.sync()).await.map_err(|e| panicked(&e))??;
    if layers > 0 {
        events.emit(Event::Synced { layers, elapsed_ms: milliseconds(began.elapsed()) });
    }
    Ok(())
}

fn panicked(error: &tokio::task::JoinError) -> Failure {
    Failure::job(Class::Internal, format!("flushing the volume: {error}"))
}
