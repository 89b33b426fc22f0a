//! Serving of one HTTP/1.1 or HTTP/2 connection, with its timeouts.
//!
//! | client | is disconnected |
//! |---|---|
//! | sends no request, or an incomplete head | after `header_timeout_seconds` |
//! | sends an incomplete body | after `body_timeout_seconds` |
//! | had a valid credential and sends nothing more | after [`IDLE`] |
//! | had no valid credential and sends nothing more | after [`UNAUTHENTICATED_IDLE`] |
//! | had no valid credential and is between requests | at the age of [`UNAUTHENTICATED_LIFE`] |
//! | does not read its answers | after [`STALL`] |
//!
//! A listener with too many connections closes some of them earlier ([`super::places`]).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::Peer;
use super::lines::StrictLines;
use super::standing::{ActiveRequest, ConnectionState};
use crate::config::api::Api;

/// Maximum idle time of a connection that had a request with a valid credential.
const IDLE: Duration = Duration::from_secs(60);
/// Maximum idle time of any other connection that had a request.
const UNAUTHENTICATED_IDLE: Duration = Duration::from_secs(5);
/// Age at which a connection without a valid credential gets no further request.
const UNAUTHENTICATED_LIFE: Duration = Duration::from_secs(60);
/// Maximum time for which a client can leave an answer unread.
const STALL: Duration = Duration::from_secs(30);
/// Time between the graceful shutdown of a connection and its forced end.
const LEAVE: Duration = Duration::from_secs(2);
/// Maximum size of a head, bytes.
const HEAD: usize = 64 << 10;
/// Maximum number of headers.
const HEADERS: usize = 100;
/// Maximum number of concurrent requests on one HTTP/2 connection. Each can have a body in memory.
const STREAMS: u32 = 8;

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) header: Duration,
    idle: Duration,
    unauthenticated_idle: Duration,
    unauthenticated_life: Duration,
    stall: Duration,
}

impl Limits {
    pub(super) fn of(settings: &Api) -> Self {
        Limits {
            header: Duration::from_secs(settings.header_timeout_seconds),
            idle: IDLE,
            unauthenticated_idle: UNAUTHENTICATED_IDLE,
            unauthenticated_life: UNAUTHENTICATED_LIFE,
            stall: STALL,
        }
    }

    /// Returns the time at which a connection has been idle for too long. `None` while a request is active.
    fn idle_at(&self, standing: &ConnectionState) -> Option<Instant> {
        let view = standing.view();
        if view.open > 0 {
            return None;
        }
        match (view.had_any, view.authenticated) {
            (false, _) => Some(view.since + self.header),
            (true, true) => Some(view.since + self.idle),
            (true, false) => {
                Some((view.since + self.unauthenticated_idle).min(view.opened + self.unauthenticated_life))
            }
        }
    }
}

/// The shared context of all connections.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) router: Router,
    pub(super) limits: Limits,
    /// Cancelled when the daemon stops: active requests are finished.
    pub(super) stop: CancellationToken,
    /// Cancelled when the time to finish is over.
    pub(super) cut: CancellationToken,
}

impl Connection {
    /// Serves one connection to its end.
    pub(super) async fn serve<I>(self, io: I, peer: Peer, standing: Arc<ConnectionState>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut io = TimeoutStream::new(StrictLines::new(io));
        io.set_write_timeout(Some(self.limits.stall));
        let io = TokioIo::new(Box::pin(io));
        let router = self.router;
        let service = {
            let standing = Arc::clone(&standing);
            service_fn(move |request: Request<Incoming>| {
                let open = standing.request();
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(peer.clone());
                request.extensions_mut().insert(Arc::clone(&standing));
                let answer = router.clone().oneshot(request);
                async move {
                    let Ok(response) = answer.await;
                    Ok::<_, Infallible>(response.map(|body| TrackedBody { body, _open: open }))
                }
            })
        };
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header)
            .max_buf_size(HEAD)
            .max_headers(HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
            .keep_alive_interval(Some(STALL))
            .keep_alive_timeout(STALL);
        let serving = builder.serve_connection(io, service);
        tokio::pin!(serving);
        // The time of the forced end, once a graceful shutdown was started.
        let mut cut_at: Option<Instant> = None;
        loop {
            let wake = cut_at.or_else(|| self.limits.idle_at(&standing)).unwrap_or_else(far_off);
            tokio::select! {
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection failed");
                    }
                    return;
                }
                () = self.cut.cancelled() => return,
                () = standing.closed() => return,
                () = self.stop.cancelled(), if cut_at.is_none() => {
                    serving.as_mut().graceful_shutdown();
                    // Active requests can finish until `self.cut`.
                    cut_at = Some(far_off());
                }
                () = standing.changed() => {}
                () = tokio::time::sleep_until(wake) => {
                    if cut_at.is_some() {
                        return;
                    }
                    if self.limits.idle_at(&standing).is_some_and(|at| at <= Instant::now()) {
                        serving.as_mut().graceful_shutdown();
                        cut_at = Some(Instant::now() + LEAVE);
                    }
                }
            }
        }
    }
}

/// Returns a time that exceeds the lifetime of any connection.
fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

/// The body of an answer, which keeps its request counted as active.
struct TrackedBody {
    body: Body,
    _open: ActiveRequest,
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
