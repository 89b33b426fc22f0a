//! Background tasks: the loops of the daemon, and requests that outlive their client.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::Service;
use crate::caches::error::Error;
use crate::caches::store::StoreError;

impl Service {
    /// Runs a task until the stop. If it ends earlier, for example by a panic, the daemon is
    /// [`broken`](Service::broken).
    pub(super) fn supervise(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if ended.is_err() || !inner.stop.is_cancelled() {
                tracing::error!("{what} ended unexpectedly: the daemon must restart");
                inner.broken.cancel();
            }
        });
    }

    /// Returns when the daemon can no longer work and should be restarted. Otherwise never returns.
    pub async fn broken(&self) {
        self.0.broken.cancelled().await;
    }

    /// Completes a request even if the client disconnects. Otherwise a record could be written whose build is
    /// never queued before the next start.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.0.tasks.spawn(work.in_current_span()).await;
        done.unwrap_or_else(|e| {
            let reason = e.to_string();
            Err(StoreError::Failed { doing: "changing", reason, full: false }.into())
        })
    }
}
