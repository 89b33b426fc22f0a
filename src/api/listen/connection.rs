//! One connection: HTTP/1.1 or HTTP/2, and the clocks that run on it.
//!
//! | who | is cut |
//! |---|---|
//! | sends no request, or half a head | after `header_timeout_seconds` |
//! | sends half a body | after `body_timeout_seconds` |
//! | has answers and asks nothing more | after [`IDLE`] |
//! | does not read its answers | after [`STALL`] |

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
use crate::config::api::Api;

/// How long a connection that had a request may wait for the next one.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may leave an answer unread.
const STALL: Duration = Duration::from_secs(30);
/// From the asking to go to the cut.
const LEAVE: Duration = Duration::from_secs(2);
/// Most bytes of a head.
const HEAD: usize = 64 << 10;
/// Most headers.
const HEADERS: usize = 100;
/// Requests of one HTTP/2 connection at once. Each may hold a body.
const STREAMS: u32 = 8;

/// What one connection may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) header: Duration,
    idle: Duration,
    stall: Duration,
}

impl Limits {
    pub(super) fn of(settings: &Api) -> Self {
        Limits { header: Duration::from_secs(settings.header_timeout_seconds), idle: IDLE, stall: STALL }
    }
}

/// What every connection needs.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) router: Router,
    pub(super) limits: Limits,
    /// The daemon stops: finish what is under way.
    pub(super) stop: CancellationToken,
    /// It has waited long enough.
    pub(super) cut: CancellationToken,
}

impl Connection {
    /// Serves one connection to its end.
    pub(super) async fn serve<I>(self, io: I, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut io = TimeoutStream::new(io);
        io.set_write_timeout(Some(self.limits.stall));
        let io = TokioIo::new(Box::pin(io));
        let activity = Arc::new(Activity::new(self.limits));
        let router = self.router;
        let service = {
            let activity = Arc::clone(&activity);
            service_fn(move |request: Request<Incoming>| {
                let open = Open::new(&activity);
                let mut request = request.map(Body::new);
                request.extensions_mut().insert(peer.clone());
                let answer = router.clone().oneshot(request);
                async move {
                    let Ok(response) = answer.await;
                    Ok::<_, Infallible>(response.map(|body| Held { body, _open: open }))
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
        let mut leaving: Option<Instant> = None;
        loop {
            let until = leaving.map_or_else(|| activity.until(), |since| since + LEAVE);
            tokio::select! {
                ended = serving.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return;
                }
                () = self.cut.cancelled() => return,
                () = self.stop.cancelled(), if leaving.is_none() => {
                    serving.as_mut().graceful_shutdown();
                    // What is under way has the time until the cut.
                    leaving = Some(far_off());
                }
                () = tokio::time::sleep_until(until) => match leaving {
                    Some(_) => return,
                    None if activity.is_idle() => {
                        serving.as_mut().graceful_shutdown();
                        leaving = Some(Instant::now());
                    }
                    None => {}
                },
            }
        }
    }
}

/// A time that no connection lives to see.
fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(365 * 86_400)
}

/// Requests under way on one connection, and since when there is none.
#[derive(Debug)]
struct Activity {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: usize,
    /// When the last one ended; the start of the connection before the first one.
    quiet_since: Instant,
    had_any: bool,
}

impl Activity {
    fn new(limits: Limits) -> Self {
        let state = State { open: 0, quiet_since: Instant::now(), had_any: false };
        Activity { limits, state: Mutex::new(state) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When to look again.
    fn until(&self) -> Instant {
        self.with(|state| {
            let idle = if state.had_any { self.limits.idle } else { self.limits.header };
            if state.open > 0 { Instant::now() + self.limits.idle } else { state.quiet_since + idle }
        })
    }

    fn is_idle(&self) -> bool {
        let now = Instant::now();
        let until = self.until();
        self.with(|state| state.open == 0) && until <= now
    }
}

/// A request under way, until its answer is sent or given up.
struct Open(Arc<Activity>);

impl Open {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.with(|state| (state.open, state.had_any) = (state.open + 1, true));
        Open(Arc::clone(activity))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.with(|state| {
            state.open -= 1;
            state.quiet_since = Instant::now();
        });
    }
}

/// The body of an answer, which keeps its request open.
struct Held {
    body: Body,
    _open: Open,
}

impl hyper::body::Body for Held {
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
