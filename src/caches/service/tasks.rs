//! Background tasks: the loops of the daemon, and requests that outlive their client.
//!
//! Invariant: [`stop`](Tasks::stop) returns after every task has ended. A loop that ends before it
//! [breaks](Tasks::broken) the daemon.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::caches::error::Error;
use crate::caches::store::StoreError;

/// The tasks of a daemon. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Cancelled when a loop ends without a stop.
    broken: CancellationToken,
}

impl Tasks {
    /// Runs a task until its end. A stop waits for it.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Runs a loop until the stop. If it ends earlier, for example by a panic, the daemon is
    /// [`broken`](Tasks::broken).
    pub(super) fn supervise(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.clone();
        self.tracker.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if ended.is_err() || !tasks.is_stopping() {
                tracing::error!("{what} ended unexpectedly: the daemon must restart");
                tasks.broken.cancel();
            }
        });
    }

    /// Completes a request even if the client disconnects. Otherwise a record could be written whose build is
    /// never queued before the next start.
    pub(super) async fn complete<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.tracker.spawn(request.in_current_span()).await;
        done.unwrap_or_else(|e| {
            let reason = e.to_string();
            Err(StoreError::Failed { doing: "changing", reason, full: false }.into())
        })
    }

    /// Returns when a loop has ended without a stop. Otherwise never returns.
    pub(super) async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Returns `true` from the start of the stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Returns when the stop starts.
    pub(super) async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Returns a token that the stop cancels.
    pub(super) fn child_token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Cancels all tasks and waits for their end.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_ends_breaks_the_daemon() {
        let tasks = Tasks::default();
        tasks.supervise("a loop", async { panic!("on purpose") });
        tasks.broken().await;

        // A regular stop does not break the daemon.
        let tasks = Tasks::default();
        let stopping = tasks.clone();
        tasks.supervise("a loop", async move { stopping.stopping().await });
        tasks.stop().await;
        assert!(!tasks.broken.is_cancelled());
    }

    #[tokio::test]
    async fn a_request_without_a_client_is_completed() {
        let tasks = Tasks::default();
        let (sender, done) = tokio::sync::oneshot::channel();
        let request = tasks.complete(async move {
            tokio::task::yield_now().await;
            sender.send(()).map_err(|()| Error::Stopping)
        });
        assert!(futures_util::FutureExt::now_or_never(request).is_none());
        done.await.unwrap();
        tasks.stop().await;
    }
}
