//! Probes and the metrics endpoint.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::IntoResponse;

use super::App;
use super::auth::Claim;
use super::caller::{authenticated, failed};
use super::errors::{Code, Problem};
use super::listen::Peer;
use super::wire::beyond::Health;
use crate::telemetry::metrics::Exposition;

const OK: Health = Health { status: "ok" };

/// Reports that the process answers.
#[utoipa::path(get, path = "/healthz", operation_id = "Alive", tag = "operation",
    responses((status = 200, description = "The process answers", body = Health)))]
pub(super) async fn alive() -> Json<Health> {
    Json(OK)
}

/// Reports whether the daemon accepts orders.
#[utoipa::path(get, path = "/readyz", operation_id = "Ready", tag = "operation",
    responses((status = 200, description = "The daemon accepts orders", body = Health)))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<Health>, Problem> {
    if app.parts.service.ready() && !app.stop.is_cancelled() {
        return Ok(Json(OK));
    }
    Err(Problem::new(Code::Unavailable, "the daemon is not ready"))
}

/// Returns counts and sizes over all tenants. Not available to tenants, because it reveals data of other
/// tenants.
#[utoipa::path(get, path = "/metrics", operation_id = "Metrics", tag = "operation",
    responses((status = 200, description = "OpenMetrics or the text format of Prometheus, by Accept",
        content((String = "application/openmetrics-text"), (String = "text/plain")))))]
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<impl IntoResponse, Problem> {
    let peer = request.extensions().get::<Peer>().cloned();
    let peer = peer.ok_or_else(|| Problem::internal("the request lacks its peer extension"))?;
    let accept = request.headers().get(header::ACCEPT).cloned();
    let tenants = app.parts.tenants.current();
    let wrong = || Problem::new(Code::Unauthenticated, "metrics: send a token of api.metrics_token_sha256");
    let allowed = match Claim::of(request.headers(), None) {
        Ok(Claim::None) if peer.is_admitted() => Ok(()),
        Ok(Claim::Token(token)) if tenants.is_for_metrics(token.expose().as_bytes()) => Ok(()),
        Ok(_) => Err(wrong()),
        Err(problem) => Err(problem),
    };
    match allowed {
        Ok(()) => {
            authenticated(request.extensions());
            app.parts.service.measure().await?;
            let exposition = Exposition::for_accept(accept.as_ref().and_then(|value| value.to_str().ok()));
            let head = [(header::CONTENT_TYPE, exposition.content_type())];
            Ok((head, app.parts.metrics.encode(exposition)))
        }
        Err(problem) => Err(failed(&app, &peer, problem).await),
    }
}
