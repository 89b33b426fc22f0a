//! HTTP endpoints of an agent for the kubelet and Prometheus: plain HTTP, no confidential data, few
//! connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::telemetry::metrics::{Exposition, Metrics};

/// Maximum number of concurrent connections.
const MAX_CONNECTIONS: usize = 16;
/// Maximum duration of one connection, including slow requests, slow responses and idle time.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Delay after a connection could not be accepted, for example because no file descriptors are left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(200);

/// A listening socket for the endpoints.
#[derive(Debug)]
pub struct Health(TcpListener);

impl Health {
    /// Binds the address.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Health(TcpListener::bind(address).await?))
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// The socket has no local address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves `/healthz`, `/readyz` (according to `ready`) and `/metrics`. Does not return.
    pub async fn serve(self, ready: Arc<AtomicBool>, metrics: Metrics) {
        let readiness = move || async move {
            match ready.load(Ordering::Acquire) {
                true => (StatusCode::OK, "ready\n"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "the first pass is not complete\n"),
            }
        };
        let encode = move |headers: HeaderMap| async move {
            let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
            let exposition = Exposition::for_accept(accept);
            ([(header::CONTENT_TYPE, exposition.content_type())], metrics.encode(exposition))
        };
        let router = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(readiness))
            .route("/metrics", get(encode));
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(CONNECTION_TIMEOUT / 6)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serving).await;
                drop(permit);
            });
        }
    }
}
