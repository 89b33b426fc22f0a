//! gRPC over a Unix socket: a connection for each call, so that a server may come and go.

use std::path::PathBuf;

use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;
use tower::util::BoxCloneService;

/// What stands between a client and a server.
pub(crate) type Channel =
    BoxCloneService<Request<Body>, Response<Incoming>, Box<dyn std::error::Error + Send + Sync>>;

/// To the server at `socket`.
pub(crate) fn channel(socket: PathBuf) -> Channel {
    BoxCloneService::new(tower::service_fn(move |request| {
        let socket = socket.clone();
        async move {
            let stream = TokioIo::new(UnixStream::connect(socket).await?);
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Ok(sender.send_request(request).await?)
        }
    }))
}

/// What calls are addressed to; a socket has no name.
pub(crate) fn origin() -> hyper::Uri {
    hyper::Uri::from_static("http://localhost")
}
