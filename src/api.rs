//! The HTTP server: the vendor's image cache API, its extensions, and the listeners for both.
//!
//! ```text
//! listen ──► connection ──► observe ──► routes ──► caller ──► caches::service
//! socket     limits, time    request     one map    tenant,
//! TCP, TLS   outs, drain     id, log     of paths   rate, body
//! ```
//!
//! | path | methods | allowed for |
//! |---|---|---|
//! | `/v5/imagecaches` | GET POST | a tenant |
//! | `/v5/imagecaches/{id}` | GET DELETE | a tenant |
//! | `/larder/v1/caches` | GET | a tenant; with `tenants=all` the tenant `admin` |
//! | `/larder/v1/events` | GET | a tenant; with `tenants=all` the tenant `admin` |
//! | `/larder/v1/host` | GET | the tenant `admin` |
//! | `/larder/v1/caches/{id}` | GET | a tenant |
//! | `/larder/v1/caches/{id}/events`, `…/timeline` | GET | a tenant |
//! | `/larder/v1/caches/{id}/cancel`, `…/refresh` | POST | a tenant |
//! | `/larder/v1/import` | POST | a tenant |
//! | `/larder/v1/match` | GET | a tenant |
//! | `/larder/v1/plan` | POST | a tenant |
//! | `/metrics` | GET | the Unix socket, or a token of `api.metrics_token_sha256` |
//! | `/healthz` `/readyz` `/openapi.json` | GET | everyone |
//!
//! The pages of [`ui`](crate::ui) are added with `Api::with_pages`.
//!
//! Only this module uses HTTP status codes; [`errors`] contains the one mapping.

pub mod auth;
mod body;
mod caller;
pub(crate) mod changes;
pub mod errors;
mod health;
pub(crate) mod host;
mod import;
mod limit;
pub mod listen;
mod observe;
pub mod openapi;
pub(crate) mod pages;
mod protocol;
pub(crate) mod query;
mod router;
mod routes;
mod sse;
pub mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::caches::runner::child::PLANS;
use crate::caches::service::Service;
use crate::config::api::Api as Settings;
use crate::telemetry::metrics::Metrics;
use auth::{SharedTenants, UsedSignatures};
use larder_model::image_cache::TenantName;
use larder_sys::clock::Clock;
use limit::{Limiter, Shares};
use listen::Listeners;
use listen::origin::Origin;

/// Maximum number of concurrent event streams of a tenant.
const STREAMS_PER_TENANT: usize = 32;
/// Maximum number of concurrent plans of a tenant. Each is a process and the host runs few, so no tenant can
/// use them all.
const PLANS_PER_TENANT: usize = PLANS / 2;
/// Maximum number of concurrent uploads of a tenant.
const IMPORTS_PER_TENANT: usize = 2;
/// Number of failed authentications of one address that are answered immediately, and the number added per
/// second. Further answers are delayed.
const FAILURES_AT_ONCE: u32 = 32;
const FAILURES_PER_SECOND: u32 = 4;

/// The dependencies of the API.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The image cache service.
    pub service: Service,
    /// The tenants that can use the API.
    pub tenants: SharedTenants,
    /// The source of the current time, for signed requests.
    pub clock: Arc<dyn Clock>,
    /// The metrics to update.
    pub metrics: Metrics,
}

/// The HTTP API of a daemon.
#[derive(Debug)]
pub struct Api {
    app: Arc<App>,
    settings: Settings,
    pages: Option<Router>,
}

/// The state shared by all requests.
#[derive(Debug)]
pub(crate) struct App {
    parts: Parts,
    rates: Limiter<TenantName>,
    failures: Limiter<Origin>,
    streams: Shares<TenantName>,
    plans: Shares<TenantName>,
    imports: Shares<TenantName>,
    used: UsedSignatures,
    body_time: Duration,
    room: body::Room,
    /// `true` if connections over TCP use TLS.
    tls: bool,
    /// Cancelled when the daemon stops: event streams end, and connections complete their current requests.
    stop: CancellationToken,
}

impl App {
    fn now(&self) -> DateTime<Utc> {
        self.parts.clock.now()
    }
}

impl Api {
    /// Creates an API that does not listen yet.
    pub fn new(parts: Parts, settings: Settings) -> Self {
        let now = Instant::now();
        let app = App {
            used: UsedSignatures::new(parts.clock.now()),
            parts,
            rates: Limiter::new(settings.requests_per_second, settings.requests_per_second, now),
            failures: Limiter::new(FAILURES_PER_SECOND, FAILURES_AT_ONCE, now),
            streams: Shares::new(STREAMS_PER_TENANT),
            plans: Shares::new(PLANS_PER_TENANT),
            imports: Shares::new(IMPORTS_PER_TENANT),
            body_time: Duration::from_secs(settings.body_timeout_seconds),
            room: body::Room::default(),
            tls: settings.tls_certificate.is_some(),
            stop: CancellationToken::new(),
        };
        Api { app: Arc::new(app), settings, pages: None }
    }

    /// Adds pages for people, which `pages` creates with the state of the API.
    #[must_use]
    pub(crate) fn with_pages(self, pages: impl FnOnce(Arc<App>) -> Router) -> Self {
        Api { pages: Some(pages(Arc::clone(&self.app))), ..self }
    }

    /// Returns the router with all routes. Connections must add their [`listen::Peer`] to each request.
    pub fn router(&self) -> Router {
        router::router(Arc::clone(&self.app), self.pages.clone())
    }

    /// Serves requests until `stop` is cancelled, then lets active requests finish within a time limit.
    pub async fn serve(self, listeners: Listeners, stop: CancellationToken) {
        let router = self.router();
        let streams = self.app.stop.clone();
        let end_streams = async {
            stop.cancelled().await;
            // Event streams would keep their connections open for the duration of a build.
            streams.cancel();
        };
        tokio::join!(listeners.serve(router, self.settings, stop.clone()), end_streams);
    }
}
