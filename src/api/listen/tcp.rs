//! TCP, with TLS where a certificate is configured.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::tls::Tls;
use super::{Door, ListenError, Peer};

/// Binds the address.
pub(super) fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError::Tcp { address, source };
    // std sets SO_REUSEADDR: a restart does not wait for connections of the last run.
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}

/// Serves who comes.
pub(super) async fn accept(listener: TcpListener, tls: Option<Tls>, door: Door) {
    door.open(
        |context| listener.poll_accept(context),
        |(stream, address), connection| {
            let tls = tls.clone();
            async move {
                let peer = Peer::Tcp { address };
                // Small answers are not to wait for a full packet.
                let _ = stream.set_nodelay(true);
                let Some(tls) = tls else { return connection.serve(stream, peer).await };
                let handshake = tokio::time::timeout(connection.limits.header, tls.accept(stream));
                let stream = tokio::select! {
                    stream = handshake => stream,
                    () = connection.stop.cancelled() => return,
                };
                match stream {
                    Ok(Ok(stream)) => connection.serve(stream, peer).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                    Err(_) => tracing::debug!("a TLS handshake took too long"),
                }
            }
        },
    )
    .await;
}
