//! The handlers of the routes for tenants.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::App;
use super::caller::Caller;
use super::errors::Problem;
use super::wire::beyond::{BuildTimeline, Detailed, Host, Listed, Matched, Overviews, Planned, Snapshots};
use super::wire::order::{CreateRequest, PlanRequest};
use super::wire::{ImageCache, Many, One};
use crate::caches::record::Record;
use crate::caches::service::Whose;
use crate::version::VERSION;
use larder_model::image_cache::spec::MAX_IMAGES;
use larder_model::reference::ImageReference;

type Answer<T> = Result<Json<T>, Problem>;
type Accepted<T> = Result<(StatusCode, Json<T>), Problem>;

/// Orders an image cache. The answer does not wait for the build.
#[utoipa::path(post, path = "/v5/imagecaches", operation_id = "CreateImageCache", tag = "vendor",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
        description = "Repeating a request with the same key returns the first answer")),
    request_body = CreateRequest, responses((status = 201, description = "Ordered", body = One)))]
pub(super) async fn create(State(app): State<Arc<App>>, caller: Caller) -> Accepted<One> {
    let key = caller.idempotency_key()?;
    let spec = CreateRequest::parse(caller.json()?)?.into_spec()?;
    let service = &app.parts.service;
    let record = match caller.may_begin(&app)? {
        true => service.create(&caller.tenant, spec, key).await?,
        false => service.create_again(&caller.tenant, spec, key).await?,
    };
    Ok((StatusCode::CREATED, Json(record.into())))
}

/// Lists the image caches of the tenant.
#[utoipa::path(get, path = "/v5/imagecaches", operation_id = "ListImageCaches", tag = "vendor",
    params(("name" = Option<String>, Query, description = "Only the image cache with exactly this name"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses((status = 200, description = "Oldest first", body = Many),
        (status = 304, description = "Unchanged since the answer with this ETag")))]
pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    let name = caller.query.one("name")?;
    let records = app.parts.service.records_of(&caller.tenant).await?;
    let records = records.iter().map(|stored| &stored.record);
    let named = records.filter(|record| name.is_none_or(|name| record.spec.name.as_str() == name));
    caller.tagged(&Many { image_caches: named.map(ImageCache::from).collect() })
}

/// Returns an image cache.
#[utoipa::path(get, path = "/v5/imagecaches/{id}", operation_id = "ShowImageCache", tag = "vendor",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, description = "The current state", body = One)))]
pub(super) async fn show(State(app): State<Arc<App>>, caller: Caller) -> Answer<One> {
    let record = app.parts.service.get(&caller.tenant, caller.cache()?).await?;
    Ok(Json(record.into()))
}

/// Deletes an image cache. While it is in use, its status is Deleting.
#[utoipa::path(delete, path = "/v5/imagecaches/{id}", operation_id = "DeleteImageCache", tag = "vendor",
    params(("id" = uuid::Uuid, Path)), responses((status = 202, description = "Deletion started", body = One)))]
pub(super) async fn remove(State(app): State<Arc<App>>, caller: Caller) -> Accepted<One> {
    let record = app.parts.service.delete(&caller.tenant, caller.cache()?).await?;
    Ok((StatusCode::ACCEPTED, Json(record.into())))
}

/// Lists image caches with their builds, space and attachments.
#[utoipa::path(get, path = "/larder/v1/caches", operation_id = "ListOverviews", tag = "larder",
    params(("name" = Option<String>, Query, description = "Only image caches with exactly this name"),
        ("tenants" = Option<String>, Query, description = "`all` lists the caches of all tenants; only the tenant `admin` can use it"),
        ("If-None-Match" = Option<String>, Header, description = "The ETag of an earlier answer")),
    responses((status = 200, description = "Oldest first", body = Overviews),
        (status = 304, description = "Unchanged since the answer with this ETag")))]
pub(super) async fn overview(State(app): State<Arc<App>>, caller: Caller) -> Result<Response, Problem> {
    let whose = if caller.wants_all_tenants()? { Whose::All } else { Whose::Own(&caller.tenant) };
    let list = |record: &Record, overview| Listed { image_cache: record.into(), overview };
    let mut image_caches = app.parts.service.overview(whose, list).await?;
    if let Some(name) = caller.query.one("name")? {
        image_caches.retain(|listed| listed.image_cache.name.as_str() == name);
    }
    caller.tagged(&Overviews { image_caches })
}

/// Returns the space of the host and the number of builds.
#[utoipa::path(get, path = "/larder/v1/host", operation_id = "ShowHost", tag = "larder",
    responses((status = 200, description = "For the tenant `admin`", body = Host)))]
pub(super) async fn host(State(app): State<Arc<App>>, caller: Caller) -> Answer<Host> {
    caller.must_be_admin()?;
    Ok(Json(Host { version: VERSION.version.to_owned(), host: app.parts.service.host().await? }))
}

/// Returns all details of an image cache.
#[utoipa::path(get, path = "/larder/v1/caches/{id}", operation_id = "ShowDetails", tag = "larder",
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, description = "The vendor's object and the details", body = Detailed)))]
pub(super) async fn details(State(app): State<Arc<App>>, caller: Caller) -> Answer<Detailed> {
    let service = &app.parts.service;
    let (record, details) = service.details(&caller.tenant, caller.cache()?).await?;
    let overview = service.overview_of(&record, caller.is_admin()).await?;
    Ok(Json(Detailed { image_cache: record.into(), details, overview }))
}

/// Returns the timeline of the build in progress, or else of the last one.
#[utoipa::path(get, path = "/larder/v1/caches/{id}/timeline", operation_id = "ShowTimeline", tag = "larder",
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, description = "The timeline and its critical path", body = BuildTimeline)))]
pub(super) async fn timeline(State(app): State<Arc<App>>, caller: Caller) -> Answer<BuildTimeline> {
    Ok(Json(app.parts.service.timeline(&caller.tenant, caller.cache()?).await?.into()))
}

/// Cancels the build or the refresh of an image cache.
#[utoipa::path(post, path = "/larder/v1/caches/{id}/cancel", operation_id = "CancelBuild", tag = "larder",
    params(("id" = uuid::Uuid, Path)), responses((status = 202, description = "Cancelled", body = One)))]
pub(super) async fn cancel(State(app): State<Arc<App>>, caller: Caller) -> Accepted<One> {
    caller.refuse_replay(&app)?;
    let record = app.parts.service.cancel(&caller.tenant, caller.cache()?).await?;
    Ok((StatusCode::ACCEPTED, Json(record.into())))
}

/// Resolves the tags of an image cache again and builds the result. The current content is served until then.
#[utoipa::path(post, path = "/larder/v1/caches/{id}/refresh", operation_id = "RefreshImageCache", tag = "larder",
    params(("id" = uuid::Uuid, Path)), responses((status = 202, description = "Refresh started", body = One)))]
pub(super) async fn refresh(State(app): State<Arc<App>>, caller: Caller) -> Accepted<One> {
    caller.refuse_replay(&app)?;
    let record = app.parts.service.refresh(&caller.tenant, caller.cache()?).await?;
    Ok((StatusCode::ACCEPTED, Json(record.into())))
}

/// Lists the sealed volumes of an image cache: the served one, and older ones that are still in use.
#[utoipa::path(get, path = "/larder/v1/caches/{id}/snapshots", operation_id = "ListSnapshots", tag = "larder",
    params(("id" = uuid::Uuid, Path)), responses((status = 200, description = "Oldest first", body = Snapshots)))]
pub(super) async fn snapshots(State(app): State<Arc<App>>, caller: Caller) -> Answer<Snapshots> {
    let snapshots = app.parts.service.snapshots(&caller.tenant, caller.cache()?, caller.is_admin()).await?;
    Ok(Json(Snapshots { snapshots }))
}

/// Finds the best available cache for a workload: most of its images, then most bytes, then the newest.
#[utoipa::path(get, path = "/larder/v1/match", operation_id = "MatchImages", tag = "larder",
    params(("image" = Vec<String>, Query, min_items = 1, max_items = 20,
        description = "An image of the workload, by digest if known; repeat for each image")),
    responses((status = 200, description = "The best cache, or null", body = Matched)))]
pub(super) async fn find(State(app): State<Arc<App>>, caller: Caller) -> Answer<Matched> {
    let given = caller.query.all("image").count();
    if !(1..=MAX_IMAGES).contains(&given) {
        return Err(Problem::invalid(format!("query: image is given {given} times, want 1 to {MAX_IMAGES}")));
    }
    let images = caller.query.all("image").map(|image| {
        let parsed = image.parse::<ImageReference>();
        parsed.map_err(|e| Problem::invalid(format!("query: image: {e}")))
    });
    let images: Vec<ImageReference> = images.collect::<Result<_, _>>()?;
    Ok(Json(app.parts.service.find(&caller.tenant, &images).await?.into()))
}

/// Reports what a create would fetch and whether it fits. Nothing is stored.
#[utoipa::path(post, path = "/larder/v1/plan", operation_id = "PlanImageCache", tag = "larder",
    request_body = PlanRequest, responses((status = 200, description = "The plan", body = Planned)))]
pub(super) async fn plan(State(app): State<Arc<App>>, caller: Caller) -> Answer<Planned> {
    let spec = CreateRequest::parse_plan(caller.json()?)?.into_spec()?;
    let _share = app.take_plan(&caller.tenant)?;
    let plan = app.parts.service.plan(&caller.tenant, spec).await?;
    Ok(Json(Planned { plan }))
}
