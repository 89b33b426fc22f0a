//! A gRPC client over a Unix socket. It opens a connection for each call, so that the server can restart at
//! any time. It replaces tonic's own transport, which is not compiled in.

use std::io;
use std::path::PathBuf;

use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

/// A connection service for clients.
pub type Channel =
    BoxCloneSyncService<Request<Body>, Response<Incoming>, Box<dyn std::error::Error + Send + Sync>>;

/// The server at a socket does not answer. It is found among the sources of a [`tonic::Status`].
#[derive(Debug, thiserror::Error)]
#[error("no answer at {}: {source}", socket.display())]
pub struct Unreachable {
    /// Path of the socket.
    pub socket: PathBuf,
    /// The error of the connection.
    pub r#source: io::Error,
}

/// Returns a channel to the server at `socket`.
pub fn channel(socket: PathBuf) -> Channel {
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let socket = socket.clone();
        async move {
            let stream = UnixStream::connect(&socket).await;
            let stream = TokioIo::new(stream.map_err(|source| Unreachable { socket, source })?);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Ok(sender.send_request(request).await?)
        }
    }))
}

/// Returns the address of requests. The host name is a placeholder, because a socket has none.
pub fn origin() -> Uri {
    Uri::from_static("http://localhost")
}
