//! gRPC over a Unix socket, for those who ask: a connection for each call, so that a server may come and go. tonic's own
//! transport is not compiled; this is what is needed of it.

use std::io;
use std::path::PathBuf;

use hyper::body::Incoming;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

/// What stands between a client and a server.
pub type Channel =
    BoxCloneSyncService<Request<Body>, Response<Incoming>, Box<dyn std::error::Error + Send + Sync>>;

/// Nobody answers at a socket; found among the sources of a [`tonic::Status`].
#[derive(Debug, thiserror::Error)]
#[error("nobody answers at {}: {source}", socket.display())]
pub struct Unreachable {
    /// The socket.
    pub socket: PathBuf,
    /// What the kernel says.
    pub source: io::Error,
}

/// To the server at `socket`.
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

/// What calls are addressed to; a socket has no name.
pub fn origin() -> Uri {
    Uri::from_static("http://localhost")
}
