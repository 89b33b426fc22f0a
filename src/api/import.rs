//! `POST /larder/v1/import`: the archive is the body of the request, and the order for its cache is the
//! query.
//!
//! The body is not read before its sender is authenticated and the cache is admitted. A signature covers the
//! hash of the body, so a signed import must state it (`X-Sdk-Content-Sha256`). The signature is checked
//! against the stated hash, and the stated hash against the body when it is complete. The body is written
//! directly to a file, so the disk limits the speed of the upload.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout, timeout_at};

use super::App;
use super::auth::{self, Stamp};
use super::body::Pending;
use super::caller::{self, BodyKind};
use super::errors::{Code, Problem};
use super::query::Query;
use super::wire::One;
use super::wire::order::CreateRequest;
use crate::caches::service::{Received, Receiving};
use crate::caches::store::IdempotencyKey;
use larder_model::image_cache::TenantName;

/// Time after which a tenant can retry while its other imports run.
const PAUSE: Duration = Duration::from_secs(10);
/// Maximum time to read and discard the rest of a refused body, so that the sender receives the reason.
const LINGER: Duration = Duration::from_secs(10);
/// Content types that are accepted as a tar.
const TYPES: [&str; 2] = ["application/octet-stream", "application/x-tar"];

/// An authenticated request within its rate limit, with an unread body.
#[derive(Debug)]
pub(super) struct Sender {
    tenant: TenantName,
    query: Query,
    /// Path and query as received.
    target: String,
    headers: HeaderMap,
    body: Pending,
    /// The stated SHA-256 of the body.
    stated: Option<[u8; 32]>,
    stamp: Option<Stamp>,
}

impl FromRequest<Arc<App>> for Sender {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let (mut parts, _) = request.into_parts();
        let query = Query::parse(parts.uri.query())?;
        let known = match caller::authenticate_within_rate(app, &parts, &query, BodyKind::Stated).await {
            Ok(known) => known,
            Err(problem) => {
                if let Some(body) = parts.extensions.get::<Pending>() {
                    linger(body, &parts.headers);
                }
                return Err(problem);
            }
        };
        let stated = auth::stated(&parts.headers)?;
        parts.headers.remove(auth::TOKEN);
        parts.headers.remove(header::AUTHORIZATION);
        let target = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let caller::Authenticated { tenant, body, stamp, .. } = known;
        Ok(Sender { tenant, query, target, headers: parts.headers, body, stated, stamp })
    }
}

/// Creates an image cache from an archive: an oci-archive or a docker-archive, not compressed as a whole. No
/// registry is used. The answer is sent when the archive is complete; the cache is Creating until all its
/// digests are verified.
#[utoipa::path(post, path = "/larder/v1/import", operation_id = "ImportImageCache", tag = "larder",
    params(
        ("name" = String, Query, min_length = 1, max_length = 128, pattern = "^[a-z]([a-z0-9-]{0,126}[a-z0-9])?$",
            description = "Unique in the tenant"),
        ("image" = Vec<String>, Query, min_items = 1, max_items = 20,
            description = "An image of the archive; repeat for each image. Also names the only image of an archive without names"),
        ("image_cache_size" = Option<u32>, Query, minimum = 20, maximum = 400,
            description = "Size of the volume, GiB (20); at least three times the total size of the images"),
        ("retention_days" = Option<u32>, Query, minimum = 0, maximum = 10000,
            description = "Days until it expires; 0, the default, means never"),
        ("cluster" = String, Query, min_length = 1, max_length = 512, description = "UID of the cluster"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
            description = "Repeating a request with the same key and archive returns the first answer"),
        ("X-Sdk-Content-Sha256" = Option<String>, Header, pattern = "^[0-9a-f]{64}$",
            description = "Expected SHA-256 of the body; required for signed requests")
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, description = "Ordered", body = One)))]
pub(super) async fn import(
    State(app): State<Arc<App>>,
    sender: Sender,
) -> Result<(StatusCode, Json<One>), Problem> {
    let answer = sender.import(&app).await;
    if answer.is_err() {
        linger(&sender.body, &sender.headers);
    }
    answer
}

impl Sender {
    async fn import(&self, app: &App) -> Result<(StatusCode, Json<One>), Problem> {
        self.check_type()?;
        let spec = CreateRequest::of_query(&self.query)?.into_spec()?;
        let key = caller::key(&self.headers)?;
        let _share = app.imports.take(&self.tenant).ok_or_else(|| {
            Problem::new(Code::TooMany, "this tenant has reached its maximum number of concurrent imports")
                .retry_after(PAUSE)
        })?;
        if !caller::may_begin(app, &self.tenant, self.stamp)? {
            return Err(crate::caches::error::Error::Replayed.into());
        }
        let service = &app.parts.service;
        let receiving = service.receive(&self.tenant, spec, self.body.length(), key.is_some()).await?;
        let received = self.receive(app, receiving).await?;
        if self.stated.is_some_and(|stated| stated != received.sha256) {
            return Err(Problem::invalid("X-Sdk-Content-Sha256: the body has a different hash"));
        }
        let key = key.map(|key| IdempotencyKey { key, request: self.hash(&received) });
        let record = service.import(received, key).await?;
        tracing::Span::current().record("cache", tracing::field::display(record.id));
        Ok((StatusCode::CREATED, Json(record.into())))
    }

    fn check_type(&self) -> Result<(), Problem> {
        let mut given = self.headers.get_all(header::CONTENT_TYPE).iter();
        let first = given.next().and_then(|value| value.to_str().ok()).map(str::trim);
        if first.is_some_and(|first| TYPES.iter().any(|known| known.eq_ignore_ascii_case(first)))
            && given.next().is_none()
            && !self.headers.contains_key(header::CONTENT_ENCODING)
        {
            return Ok(());
        }
        let want =
            "Content-Type: send application/octet-stream or application/x-tar, without Content-Encoding";
        Err(Problem::new(Code::MediaType, want))
    }

    /// Reads the whole body. Fails if the sender is silent for `api.body_timeout_seconds` or exceeds the
    /// maximum duration of a build.
    async fn receive(&self, app: &App, mut receiving: Receiving) -> Result<Received, Problem> {
        let end = Instant::now() + app.parts.service.longest_build();
        let mut body = self.body.take().unwrap_or_default();
        let mut any = false;
        loop {
            let next = timeout_at(end, timeout(app.body_time, body.frame()));
            let frame = tokio::select! {
                next = next => next,
                () = app.stop.cancelled() => {
                    return Err(crate::caches::error::Error::Stopping.into());
                }
            };
            let frame = match frame {
                Ok(Ok(Some(frame))) => frame.map_err(|_| Problem::invalid("the body is incomplete"))?,
                Ok(Ok(None)) => break,
                Ok(Err(_)) => {
                    let seconds = app.body_time.as_secs();
                    return Err(Problem::invalid(format!("no data of the body arrived for {seconds} s")));
                }
                Err(_) => {
                    return Err(Problem::invalid(
                        "the body did not arrive within the maximum duration of a build",
                    ));
                }
            };
            let Ok(bytes) = frame.into_data() else { continue };
            any |= !bytes.is_empty();
            if let Err(error) = receiving.take(&bytes).await {
                self.body.put_back(body);
                return Err(error.into());
            }
        }
        if !any {
            return Err(Problem::invalid("body: empty, send an archive"));
        }
        Ok(receiving.end().await?)
    }

    /// Returns the hash over everything that distinguishes requests with the same key.
    fn hash(&self, received: &Received) -> [u8; 32] {
        let mut request = Sha256::new();
        for part in ["POST".as_bytes(), self.target.as_bytes(), &received.sha256] {
            request.update((part.len() as u64).to_be_bytes());
            request.update(part);
        }
        request.finalize().into()
    }
}

/// Reads and discards the rest of the body while the refusal is sent, because a client that cannot write
/// might not read the answer. A client that waits for 100 Continue has sent nothing, and nothing is read.
fn linger(body: &Pending, headers: &HeaderMap) {
    let Some(mut body) = body.take().filter(|_| !headers.contains_key(header::EXPECT)) else { return };
    tokio::spawn(async move {
        let to_its_end =
            async { while !body.is_end_stream() && matches!(body.frame().await, Some(Ok(_))) {} };
        // The answer is the same whatever the result.
        let _ = timeout(LINGER, to_its_end).await;
    });
}
