//! What the kubelet and Prometheus ask an agent: plain HTTP, nothing that is secret, and few of them at a time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::telemetry::metrics::Metrics;

/// Most connections at a time.
const AT_A_TIME: usize = 16;
/// Most time of one connection: of a request that is not sent, an answer that is not read, and one that is kept open.
const LIMIT: Duration = Duration::from_secs(60);
/// How long to wait where no connection can be accepted, as for want of descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// A listener at an address.
#[derive(Debug)]
pub struct Health(TcpListener);

impl Health {
    /// Takes the address.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Health(TcpListener::bind(address).await?))
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers for ever: `/healthz`, `/readyz` by what `ready` says, and `/metrics`.
    pub async fn serve(self, ready: Arc<AtomicBool>, metrics: Metrics) {
        let readiness = move || async move {
            match ready.load(Ordering::Acquire) {
                true => (StatusCode::OK, "ready\n"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "not everything was looked at yet\n"),
            }
        };
        let text = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let told = move || async move { ([(header::CONTENT_TYPE, text)], metrics.encode()) };
        let router = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(readiness))
            .route("/metrics", get(told));
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        loop {
            // It is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(LIMIT / 6)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(LIMIT, serving).await;
                drop(permit);
            });
        }
    }
}
