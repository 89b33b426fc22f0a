//! Flushing a volume again and again beside the work that fills it.
//!
//! Left alone, the kernel keeps what is written in memory for half a minute, or until a tenth of the memory is full of it
//! (`vm.dirty_expire_centisecs`, `vm.dirty_background_ratio`): the disk has nothing to do, and then the seal waits for all
//! of it. Flushed as they come, bytes are on their way while others are still inflated, and a power cut costs an unfinished
//! build only what was not yet durable.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};

use super::events::Events;
use super::failure::Fail;
use crate::volume::Volume;
use larder_model::class::Class;
use larder_model::event::Event;

/// Time between the end of one flush and the start of the next. Shorter ones gain nothing, and a flush is one of all that others
/// write to the same file system.
const PAUSE: Duration = Duration::from_secs(1);

/// The work, until it is stopped.
#[derive(Debug)]
pub(super) struct Flushing {
    stop: Arc<Notify>,
    /// Nothing once its end was told.
    task: Option<JoinHandle<Result<(), Fail>>>,
}

impl Flushing {
    /// Begins with a pause.
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
        Flushing { stop, task: Some(task) }
    }

    /// Waits for a flush that fails. After it nothing on the volume can be believed.
    pub(super) async fn failed(&mut self) -> Fail {
        if let Some(task) = &mut self.task {
            let ended = task.await;
            self.task = None;
            if let Err(fail) = ended.unwrap_or_else(|e| Err(panicked(&e))) {
                return fail;
            }
        }
        future::pending().await
    }

    /// Ends it. A flush that is under way is waited for: what it has to say is said to nobody else.
    pub(super) async fn stop(self) -> Result<(), Fail> {
        self.stop.notify_one();
        match self.task {
            Some(task) => task.await.unwrap_or_else(|e| Err(panicked(&e))),
            None => Ok(()),
        }
    }
}

/// Flushes the volume and tells of layers that became durable by it.
pub(super) async fn flush(volume: &Arc<Volume>, events: &Events) -> Result<(), Fail> {
    let volume = Arc::clone(volume);
    let layers = spawn_blocking(move || volume.sync()).await.map_err(|e| panicked(&e))??;
    if layers > 0 {
        events.emit(Event::Synced { layers });
    }
    Ok(())
}

fn panicked(error: &tokio::task::JoinError) -> Fail {
    Fail::job(Class::Internal, format!("flushing the volume: {error}"))
}
