//! Serves the snapshotter on its socket.

use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::service::Service;
use super::socket::{self, SocketError};
use super::{Error, POLL_INTERVAL, Settings, Snapshotter};
use larder_containerd_api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use larder_model::class::Class;

/// Maximum size of a request, bytes. Labels are its largest part.
const MAX_REQUEST: usize = 1 << 20;
/// Maximum size of a response, bytes. Lists are split into several.
const MAX_RESPONSE: usize = 4 << 20;
/// Maximum number of parallel requests on one connection. containerd uses one connection.
const MAX_PARALLEL: usize = 32;
/// Delay after a failure to accept a connection, for example because of missing descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// The snapshotter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The directory or the records cannot be used.
    #[error(transparent)]
    Snapshotter(#[from] Error),
    /// The socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl StartError {
    /// Returns the error class, which determines the exit code.
    pub fn class(&self) -> Class {
        match self {
            StartError::Snapshotter(e) => e.class(),
            StartError::Socket(e) => e.class(),
        }
    }
}

/// A snapshotter that owns its directory and its socket.
#[derive(Debug)]
pub struct Server {
    snapshotter: Arc<Snapshotter>,
    listener: Bound,
}

impl Server {
    /// Locks the directory, removes leftovers, and opens the socket. Blocks.
    ///
    /// # Errors
    /// [`StartError`]: another instance uses them, or the records are damaged.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let snapshotter = Arc::new(Snapshotter::open(settings)?);
        // After a reboot, nothing is mounted.
        snapshotter.update_links(true);
        Ok(Server { listener: socket::take(&settings.socket)?, snapshotter })
    }

    /// Serves requests until `stop`, and then finishes the requests in progress.
    ///
    /// # Errors
    /// The server cannot accept connections.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        let service = SnapshotsServer::new(Service(Arc::clone(&self.snapshotter)))
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(MAX_RESPONSE);
        let connections = connections(UnixListener::from_std(self.listener)?);
        let watching = tokio::spawn(watch(self.snapshotter));
        let served = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(MAX_PARALLEL)
            .add_service(service)
            .serve_with_incoming_shutdown(connections, stop.cancelled_owned())
            .await;
        watching.abort();
        served.map_err(io::Error::other)
    }
}

fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// Watches for attached and detached volumes.
async fn watch(snapshotter: Arc<Snapshotter>) {
    let mut settled = true;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let (snapshotter, retry) = (Arc::clone(&snapshotter), !settled);
        let looked = crate::blocking::spawn(move || snapshotter.update_links(retry)).await;
        settled = looked.unwrap_or(false);
    }
}
