//! TCP, with TLS if a certificate is configured.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

use super::tls::Tls;
use super::{Accepted, Acceptor, ListenError, Peer};

/// Binds the TCP address.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError::Tcp { address, source };
    // std sets SO_REUSEADDR, so a restart does not wait for connections of the previous run.
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}

/// Accepts and serves connections until the daemon stops.
pub(super) async fn accept(listener: TcpListener, tls: Option<Tls>, acceptor: Acceptor) {
    acceptor
        .open(
            |context| {
                listener
                    .poll_accept(context)
                    .map_ok(|(stream, address)| (stream, Some(Peer::Tcp { address })))
            },
            |Accepted { stream, peer, standing }: Accepted<TcpStream>, connection| {
                let tls = tls.clone();
                async move {
                    // Small answers must not wait for a full packet.
                    let _ = stream.set_nodelay(true);
                    let Some(tls) = tls else { return connection.serve(stream, peer, standing).await };
                    let handshake = tokio::time::timeout(connection.limits.header, tls.accept(stream));
                    let stream = tokio::select! {
                        stream = handshake => stream,
                        () = connection.stop.cancelled() => return,
                        () = standing.closed() => return,
                    };
                    match stream {
                        Ok(Ok(stream)) => connection.serve(stream, peer, standing).await,
                        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                        Err(_) => tracing::debug!("TLS handshake timed out"),
                    }
                }
            },
        )
        .await;
}
