//! Publishing of committed layers to other builders, in the background.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::share::Share;
use larder_model::seal::Layer;

/// Maximum time to wait for the lock of a layer. A longer holder is fetching the layer, and will publish its
/// own copy.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval between attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Layers that are being published.
#[derive(Debug)]
pub(super) struct Publisher {
    share: Option<Arc<Share>>,
    tasks: JoinSet<()>,
}

impl Publisher {
    /// Creates a publisher. It does nothing if layers are not shared.
    pub(super) fn new(share: Option<Arc<Share>>) -> Self {
        Publisher { share, tasks: JoinSet::new() }
    }

    /// Publishes a committed layer if its tar can be rebuilt.
    pub(super) fn layer(&mut self, layer: Layer) {
        let Some(share) = self.share.clone().filter(|_| layer.tar_split_size.is_some()) else { return };
        self.tasks.spawn(async move {
            let started = Instant::now();
            let layer = Arc::new(layer);
            while started.elapsed() < LOCK_TIMEOUT {
                let (share, published) = (Arc::clone(&share), Arc::clone(&layer));
                match crate::blocking::spawn(move || share.publish(&published.diff_id, &published)).await {
                    Ok(Ok(true)) | Err(_) => return,
                    Ok(Ok(false)) => tokio::time::sleep(RETRY_INTERVAL).await,
                    Ok(Err(error)) => {
                        tracing::warn!(layer = %layer.blob, %error, "cannot share a layer");
                        return;
                    }
                }
            }
        });
    }

    /// Waits until all layers are published.
    pub(super) async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
