//! The snapshotter at its socket.

use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::service::Service;
use super::socket::{self, SocketError};
use super::{EVERY, Error, Settings, Snapshotter};
use larder_containerd_api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use larder_model::class::Class;

/// Most bytes of a request; labels are its largest part.
const MAX_REQUEST: usize = 1 << 20;
/// Most bytes of an answer; lists come in several.
const MAX_ANSWER: usize = 4 << 20;
/// Requests of one connection that are answered at a time; containerd has one connection.
const AT_A_TIME: usize = 32;
/// How long to wait where no connection can be accepted, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// A snapshotter that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its directory or its records.
    #[error(transparent)]
    Snapshotter(#[from] Error),
    /// Its socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

impl StartError {
    /// The class, which decides about the exit code.
    pub fn class(&self) -> Class {
        match self {
            StartError::Snapshotter(e) => e.class(),
            StartError::Socket(e) => e.class(),
        }
    }
}

/// A snapshotter that holds its directory and its socket.
#[derive(Debug)]
pub struct Server {
    snapshotter: Arc<Snapshotter>,
    listener: Bound,
}

impl Server {
    /// Takes directory and socket, and puts in order what lies there. Blocks.
    ///
    /// # Errors
    /// [`StartError`]: another one has them, or the records are damaged.
    pub fn start(settings: &Settings) -> Result<Self, StartError> {
        let snapshotter = Arc::new(Snapshotter::open(settings)?);
        // After a boot nothing is mounted.
        snapshotter.look_around(true);
        Ok(Server { listener: socket::take(&settings.socket)?, snapshotter })
    }

    /// Answers until `stop`, and then for as long as it takes to finish what was asked.
    ///
    /// # Errors
    /// Connections cannot be served at all.
    pub async fn serve(self, stop: CancellationToken) -> io::Result<()> {
        let service = SnapshotsServer::new(Service(Arc::clone(&self.snapshotter)))
            .max_decoding_message_size(MAX_REQUEST)
            .max_encoding_message_size(MAX_ANSWER);
        let connections = connections(UnixListener::from_std(self.listener)?);
        let watching = tokio::spawn(watch(self.snapshotter));
        let served = tonic::transport::Server::builder()
            .concurrency_limit_per_connection(AT_A_TIME)
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
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    })
}

/// Follows volumes that come and go.
async fn watch(snapshotter: Arc<Snapshotter>) {
    let mut settled = true;
    loop {
        tokio::time::sleep(EVERY).await;
        let (snapshotter, anew) = (Arc::clone(&snapshotter), !settled);
        let looked = tokio::task::spawn_blocking(move || snapshotter.look_around(anew)).await;
        settled = looked.unwrap_or(false);
    }
}
