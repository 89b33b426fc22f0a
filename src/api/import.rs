//! `POST /larder/v1/import`: an archive as the body of a request, the order for its cache in the query.
//!
//! Nothing of it is read before its sender is known and the cache is admitted. A signature covers the hash of the body, so a
//! signed import has to state it (`X-Sdk-Content-Sha256`): the signature is checked against what is stated, what is stated against
//! the body when that is there. From there on every byte goes to a file at once: the sender is as fast as the disk.

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
use super::caller::{self, Bodied};
use super::errors::{Code, Problem};
use super::query::Query;
use super::wire::One;
use super::wire::order::Order;
use crate::caches::service::{Received, Receiving};
use crate::caches::store::IdempotencyKey;
use larder_model::image_cache::TenantName;

/// When to ask again while other imports of the tenant are sent.
const PAUSE: Duration = Duration::from_secs(10);
/// How long what is still sent after a refusal is thrown away, so that the sender sees why.
const LINGER: Duration = Duration::from_secs(10);
/// Types of a body that is taken for a tar.
const TYPES: [&str; 2] = ["application/octet-stream", "application/x-tar"];

/// An authenticated request within its rate, of which the body was not read.
#[derive(Debug)]
pub(super) struct Sender {
    tenant: TenantName,
    query: Query,
    /// Path and query as they came.
    target: String,
    headers: HeaderMap,
    body: Pending,
    /// SHA-256 that the body is said to have.
    stated: Option<[u8; 32]>,
    stamp: Option<Stamp>,
}

impl FromRequest<Arc<App>> for Sender {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let (mut parts, _) = request.into_parts();
        let query = Query::parse(parts.uri.query())?;
        let known = match caller::know(app, &parts, &query, Bodied::Stated).await {
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
        let caller::Known { tenant, body, stamp, .. } = known;
        Ok(Sender { tenant, query, target, headers: parts.headers, body, stated, stamp })
    }
}

/// Makes an image cache of an archive: an oci-archive or a docker-archive, uncompressed as a whole. No registry is asked. The
/// answer is there when all of the archive is; the cache is Creating until every digest of it is proven.
#[utoipa::path(post, path = "/larder/v1/import", operation_id = "ImportImageCache", tag = "larder",
    params(
        ("name" = String, Query, min_length = 1, max_length = 128, pattern = "^[a-z]([a-z0-9-]{0,126}[a-z0-9])?$",
            description = "Unique in the tenant"),
        ("image" = Vec<String>, Query, min_items = 1, max_items = 20,
            description = "An image of the archive, repeated for each; also what to call the only one, if it has no name"),
        ("image_cache_size" = Option<u32>, Query, minimum = 20, maximum = 400,
            description = "Size of the volume, GiB (20); at least three times what the images come to"),
        ("retention_days" = Option<u32>, Query, minimum = 0, maximum = 10000,
            description = "Days until it expires; 0, the default, is never"),
        ("cluster" = String, Query, min_length = 1, max_length = 512, description = "UID of the cluster"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, pattern = "^[!-~]+$",
            description = "A repeated request with the same key and archive gets the first answer"),
        ("X-Sdk-Content-Sha256" = Option<String>, Header, pattern = "^[0-9a-f]{64}$",
            description = "SHA-256 of the body, compared with it; a signed request must state it")
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
        let spec = Order::of_query(&self.query)?.into_spec()?;
        let key = caller::key(&self.headers)?;
        let _share = app.imports.take(&self.tenant).ok_or_else(|| {
            Problem::new(Code::TooMany, "this tenant sends as many archives at once as it may")
                .retry_after(PAUSE)
        })?;
        if !caller::may_begin(app, &self.tenant, self.stamp)? {
            return Err(crate::caches::error::Error::Replayed.into());
        }
        let service = &app.parts.service;
        let receiving = service.receive(&self.tenant, spec, self.body.length(), key.is_some()).await?;
        let received = self.receive(app, receiving).await?;
        if self.stated.is_some_and(|stated| stated != received.sha256) {
            return Err(Problem::invalid("X-Sdk-Content-Sha256: the body has another hash"));
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
            "Content-Type: want application/octet-stream or application/x-tar, and no Content-Encoding";
        Err(Problem::new(Code::MediaType, want))
    }

    /// Reads the body to its end: who sends nothing for `api.body_timeout_seconds` is cut, and so is who takes longer than a
    /// build may.
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
                Ok(Ok(Some(frame))) => frame.map_err(|_| Problem::invalid("the body broke off"))?,
                Ok(Ok(None)) => break,
                Ok(Err(_)) => {
                    let seconds = app.body_time.as_secs();
                    return Err(Problem::invalid(format!("nothing of the body came for {seconds} s")));
                }
                Err(_) => return Err(Problem::invalid("the body was not there in the time of a build")),
            };
            let Ok(bytes) = frame.into_data() else { continue };
            any |= !bytes.is_empty();
            if let Err(error) = receiving.take(&bytes).await {
                self.body.put_back(body);
                return Err(error.into());
            }
        }
        if !any {
            return Err(Problem::invalid("body: it is empty, want an archive"));
        }
        Ok(receiving.end().await?)
    }

    /// Everything that makes a request another one.
    fn hash(&self, received: &Received) -> [u8; 32] {
        let mut request = Sha256::new();
        for part in ["POST".as_bytes(), self.target.as_bytes(), &received.sha256] {
            request.update((part.len() as u64).to_be_bytes());
            request.update(part);
        }
        request.finalize().into()
    }
}

/// Throws away what is still sent while the refusal is on its way: who cannot write any more may not read either. Who waits to be
/// told to go on has sent nothing, and is not told.
fn linger(body: &Pending, headers: &HeaderMap) {
    let Some(mut body) = body.take().filter(|_| !headers.contains_key(header::EXPECT)) else { return };
    tokio::spawn(async move {
        let to_its_end =
            async { while !body.is_end_stream() && matches!(body.frame().await, Some(Ok(_))) {} };
        // The answer stands whatever comes of it.
        let _ = timeout(LINGER, to_its_end).await;
    });
}
