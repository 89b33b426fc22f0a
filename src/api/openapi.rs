//! The OpenAPI description of the API: `/openapi.json`.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, Http, HttpAuthScheme, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use super::errors::Envelope;
use super::wire::beyond::{
    BuildTimeline, Detailed, Health, Host, Listed, Match, Matched, Overviews, Planned, Snapshots, StageTime,
};
use super::wire::order::{CreateRequest, PlanRequest};
use super::wire::{BuildingConfig, ImageCache, Many, One};
use super::{changes, health, import, routes, sse};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Larder",
        description = "Image caches: the API of a managed Kubernetes service, and extensions under /larder/v1/."
    ),
    paths(
        routes::create,
        routes::list,
        routes::show,
        routes::remove,
        routes::overview,
        changes::events,
        routes::host,
        routes::details,
        routes::timeline,
        sse::events,
        routes::cancel,
        routes::refresh,
        routes::snapshots,
        import::import,
        routes::find,
        routes::plan,
        health::alive,
        health::ready,
        health::metrics,
        document
    ),
    components(schemas(
        Envelope, CreateRequest, PlanRequest, BuildingConfig, ImageCache, One, Many, Detailed, Match, Matched, Planned,
        Snapshots, Health, Host, Listed, Overviews, BuildTimeline, StageTime
    )),
    modifiers(&Errors)
)]
struct Document;

/// Error responses that any route for tenants can return.
const ERRORS: [(&str, &str); 12] = [
    ("400", "A field, a header or the query is malformed or outside its limits"),
    ("401", "No credential, or one that is not valid"),
    ("403", "The quota is exhausted, or the credential does not allow this"),
    ("404", "The tenant has no such image cache"),
    ("405", "The path has no such method"),
    ("409", "The name is taken, or the state of the image cache does not allow this"),
    ("413", "The body is larger than 1 MiB, or the archive is larger than its cache"),
    ("415", "The body is not application/json, or the archive is not an uncompressed tar"),
    ("429", "Too many requests or queued builds: see Retry-After"),
    ("500", "The daemon failed; its log has the reason under X-Request-Id"),
    ("503", "The daemon is starting or stopping, or cannot reach a dependency"),
    ("507", "There is not enough space on this host"),
];

/// Paths that need no credential.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/openapi.json"];

struct Errors;

impl Modify for Errors {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let header = |name| SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new(name)));
        components.add_security_scheme("token", header("X-Auth-Token"));
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
        components.add_security_scheme("signature", header("Authorization"));
        for (path, item) in &mut document.paths.paths {
            let open = OPEN.contains(&path.as_str());
            let operations = [&mut item.get, &mut item.post, &mut item.delete];
            for operation in operations.into_iter().flatten() {
                describe(operation, open);
            }
        }
    }
}

fn describe(operation: &mut Operation, open: bool) {
    for (status, why) in ERRORS {
        if open && !["404", "405", "500", "503"].contains(&status) {
            continue;
        }
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Envelope"))).build();
        let response = ResponseBuilder::new().description(why).content("application/json", content).build();
        operation.responses.responses.insert(status.to_owned(), response.into());
    }
    if !open {
        let none: [String; 0] = [];
        operation.security = Some(vec![
            SecurityRequirement::new("token", none.clone()),
            SecurityRequirement::new("bearer", none.clone()),
            SecurityRequirement::new("signature", none),
        ]);
    }
}

static DOCUMENT: LazyLock<Bytes> =
    LazyLock::new(|| serde_json::to_vec(&Document::openapi()).unwrap_or_default().into());

/// Returns this description.
#[utoipa::path(get, path = "/openapi.json", operation_id = "Describe", tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone())
}
