//! Telling other builders of committed layers, beside the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::share::Share;
use larder_model::seal::Layer;

/// How long the lock of a layer is asked for. Who holds it longer fetches the layer, and tells of his own.
const LIMIT: Duration = Duration::from_secs(2);

/// How often.
const EVERY: Duration = Duration::from_millis(20);

/// Layers that are being told of.
#[derive(Debug)]
pub(super) struct Publish {
    share: Option<Arc<Share>>,
    tasks: JoinSet<()>,
}

impl Publish {
    /// Tells nobody where layers are not shared.
    pub(super) fn new(share: Option<Arc<Share>>) -> Self {
        Publish { share, tasks: JoinSet::new() }
    }

    /// Tells of a committed layer, if its tar can be rebuilt.
    pub(super) fn layer(&mut self, layer: Layer) {
        let Some(share) = self.share.clone().filter(|_| layer.tar_split_size.is_some()) else { return };
        self.tasks.spawn(async move {
            let started = Instant::now();
            let layer = Arc::new(layer);
            while started.elapsed() < LIMIT {
                let (share, telling) = (Arc::clone(&share), Arc::clone(&layer));
                match tokio::task::spawn_blocking(move || share.publish(&telling.diff_id, &telling)).await {
                    Ok(Ok(true)) | Err(_) => return,
                    Ok(Ok(false)) => tokio::time::sleep(EVERY).await,
                    Ok(Err(error)) => {
                        tracing::warn!(layer = %layer.blob, %error, "sharing a layer");
                        return;
                    }
                }
            }
        });
    }

    /// Waits until all was told.
    pub(super) async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
