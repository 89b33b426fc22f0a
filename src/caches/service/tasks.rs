//! What runs on its own: the loops of the daemon, and requests whose asker may go away.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tracing::Instrument as _;

use super::Service;
use crate::caches::error::Error;
use crate::caches::store::StoreError;

impl Service {
    /// Runs what has to run until the stop. If it ends before, by a panic above all, the daemon is [`broken`](Service::broken).
    pub(super) fn supervise(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            if ended.is_err() || !inner.stop.is_cancelled() {
                tracing::error!("{what} came to an end: the daemon cannot go on");
                inner.broken.cancel();
            }
        });
    }

    /// Resolves when the daemon cannot do its work any more and had better be started anew; else never.
    pub async fn broken(&self) {
        self.0.broken.cancelled().await;
    }

    /// Carries out what was asked for even if whoever asked goes away: a record that is written and a build that is not in
    /// the queue would wait for each other until the next start.
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
