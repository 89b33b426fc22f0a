//! The router: all routes and their middleware.

use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Router, middleware};

use super::errors::{Code, Problem};
use super::{App, changes, health, import, observe, openapi, protocol, routes, sse};

/// Creates the router with all routes and their middleware, and `pages` for people.
pub(super) fn router(app: Arc<App>, pages: Option<Router>) -> Router {
    Router::new()
        .route("/v5/imagecaches", get(routes::list).post(routes::create))
        .route("/v5/imagecaches/{id}", get(routes::show).delete(routes::remove))
        .route("/larder/v1/caches", get(routes::overview))
        .route("/larder/v1/events", get(changes::events))
        .route("/larder/v1/host", get(routes::host))
        .route("/larder/v1/caches/{id}", get(routes::details))
        .route("/larder/v1/caches/{id}/timeline", get(routes::timeline))
        .route("/larder/v1/caches/{id}/events", get(sse::events))
        .route("/larder/v1/caches/{id}/cancel", post(routes::cancel))
        .route("/larder/v1/caches/{id}/refresh", post(routes::refresh))
        .route("/larder/v1/caches/{id}/snapshots", get(routes::snapshots))
        .route("/larder/v1/import", post(import::import))
        .route("/larder/v1/match", get(routes::find))
        .route("/larder/v1/plan", post(routes::plan))
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/openapi.json", get(openapi::document))
        .with_state(Arc::clone(&app))
        .merge(pages.unwrap_or_default())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(protocol::one_host))
        .layer(middleware::from_fn_with_state(app, observe::observe))
}

async fn no_route() -> Problem {
    Problem::new(Code::NoRoute, "the API has no such path: see /openapi.json")
}

async fn no_method() -> Problem {
    Problem::new(Code::Method, "this path does not support the method: see Allow")
}

#[cfg(test)]
mod tests;
