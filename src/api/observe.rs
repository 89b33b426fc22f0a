//! Per-request middleware: request ID, log line, metrics, and disposal of an unread body.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use tracing::field::Empty;
use tracing::{Instrument as _, Level};
use uuid::Uuid;

use super::App;
use super::body::Pending;
use super::errors::{Logged, Problem};
use larder_model::event::milliseconds;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The metrics label of a request without a matching route.
const UNMATCHED: &str = "unmatched";

/// Assigns an ID to a request, passes it on, and logs it once.
pub(super) async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    // Generated here, because an ID chosen by a client might already be used.
    let id = Uuid::new_v4().simple().to_string();
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned());
    let route = route.unwrap_or_else(|| UNMATCHED.to_owned());
    let method = request.method().clone();
    let body = Pending::new(std::mem::take(request.body_mut()));
    request.extensions_mut().insert(body.clone());
    // A filter such as `warn` removes spans of lower levels, and with them the fields of its lines.
    let span =
        tracing::error_span!("request", request = %id, tenant = Empty, cache = Empty, cache_name = Empty);
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().instrument(span.clone()).await;
    let mut response =
        answer.unwrap_or_else(|_| Problem::internal("the handler of the request panicked").into_response());
    body.discard().await;
    let elapsed = started.elapsed();
    let status = response.status().as_u16();
    app.parts.metrics.api(counted(&method), &route, status, elapsed);
    let logged = response.extensions_mut().remove::<Logged>();
    span.in_scope(|| log(method.as_str(), &route, status, elapsed, logged));
    dress(&mut response, &id);
    response
}

/// Returns a method as a metrics label. Clients can send arbitrary methods.
fn counted(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

fn dress(response: &mut Response<Body>, id: &str) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

fn log(method: &str, route: &str, status: u16, elapsed: Duration, logged: Option<Logged>) {
    let elapsed_ms = milliseconds(elapsed);
    let Some(Logged { level, code, reason }) = logged else {
        return tracing::debug!(method, route, status, elapsed_ms, "answered");
    };
    let reason = reason.as_deref();
    match level {
        Level::ERROR => tracing::error!(method, route, status, elapsed_ms, code, reason, "failed"),
        Level::WARN => tracing::warn!(method, route, status, elapsed_ms, code, reason, "refused"),
        _ => tracing::info!(method, route, status, elapsed_ms, code, reason, "refused"),
    }
}
