//! The tenant of a request. A route for tenants takes a [`Caller`], which is the only way to get a tenant for
//! the service.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{FromRequest, MatchedPath, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::auth::{self, Claim, Signed, Stamp, Tenants};
use super::body::{Keep, Pending, Received};
use super::errors::{Code, Problem};
use super::listen::Peer;
use super::listen::origin::Origin;
use super::listen::standing::ConnectionState;
use super::query::Query;
use super::{App, host};
use crate::caches::error::Error;
use crate::caches::store::IdempotencyKey;
use crate::config::tenant::ADMIN;
use larder_model::digest::hex;
use larder_model::image_cache::{CacheId, TenantName};

/// Delay of the answer to a failed authentication beyond the limit. Such requests are not refused, because
/// many tenants can share an address.
const FAILURE_DELAY: Duration = Duration::from_secs(1);
/// Maximum length of an `Idempotency-Key`, bytes.
const MAX_KEY_LENGTH: usize = 255;

/// An authenticated request within its rate limit, with its body read.
#[derive(Debug)]
pub(super) struct Caller {
    /// The tenant that was authenticated.
    pub(super) tenant: TenantName,
    /// The query, decoded once.
    pub(super) query: Query,
    method: String,
    path: String,
    route: String,
    headers: HeaderMap,
    body: Bytes,
    stamp: Option<Stamp>,
    _place: Option<OwnedSemaphorePermit>,
}

impl FromRequest<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        let (parts, _) = request.into_parts();
        let query = Query::parse(parts.uri.query())?;
        let Authenticated { tenant, body, received, stamp } =
            authenticate_within_rate(app, &parts, &query, BodyKind::Small).await?;
        let received = match received {
            Some(received) => received,
            None => body.receive(app.body_time, Keep::Bytes(&app.room)).await?,
        };
        let mut headers = parts.headers;
        // Remove the credentials, so that handlers cannot see or log them.
        headers.remove(auth::TOKEN);
        headers.remove(header::AUTHORIZATION);
        Ok(Caller {
            tenant,
            query,
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            route: parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned(),
            headers,
            body: received.bytes,
            stamp,
            _place: received.place,
        })
    }
}

/// The way in which a signature covers the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// A small body, read before the signature is checked.
    Small,
    /// A body of any size. Its hash is stated in the head and checked by the reader of the body.
    Stated,
}

/// The sender of a request.
#[derive(Debug)]
pub(super) struct Authenticated {
    pub(super) tenant: TenantName,
    pub(super) body: Pending,
    /// The body, if it was read for authentication.
    received: Option<Received>,
    /// The identity of the signature, if the request is signed.
    pub(super) stamp: Option<Stamp>,
}

/// Authenticates the sender of a request and applies its rate limit.
pub(super) async fn authenticate_within_rate(
    app: &App,
    parts: &Parts,
    query: &Query,
    bodied: BodyKind,
) -> Result<Authenticated, Problem> {
    let missing = |what| Problem::internal(format!("the request lacks its {what} extension"));
    let peer = parts.extensions.get::<Peer>().ok_or_else(|| missing("peer"))?.clone();
    let body = parts.extensions.get::<Pending>().ok_or_else(|| missing("body"))?.clone();
    let tenants = app.parts.tenants.current();
    let known = authenticate(app, &tenants, &peer, parts, query, &body, bodied).await;
    let known = match known {
        Ok((tenant, received, stamp)) => Authenticated { tenant, body, received, stamp },
        Err(problem) => return Err(failed(app, &peer, problem).await),
    };
    let tenant = &known.tenant;
    authenticated(&parts.extensions);
    tracing::Span::current().record("tenant", tenant.as_str());
    app.rates.take(tenant, Instant::now()).map_err(|wait| {
        Problem::new(Code::TooMany, "this tenant exceeds its request rate: slow down").retry_after(wait)
    })?;
    Ok(known)
}

/// Returns the tenant, the body if it was read for authentication, and the identity of the signature of a
/// signed request.
async fn authenticate(
    app: &App,
    tenants: &Tenants,
    peer: &Peer,
    parts: &Parts,
    query: &Query,
    body: &Pending,
    bodied: BodyKind,
) -> Result<(TenantName, Option<Received>, Option<Stamp>), Problem> {
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    match Claim::of(&parts.headers, authority)? {
        Claim::None => match peer {
            Peer::Unix { admitted: true, .. }
                if host::of(parts).is_some_and(|it| host::can_be_a_site(&it)) =>
            {
                let message = "Host: want localhost or larder on the socket without a credential";
                Err(Problem::new(Code::Forbidden, message))
            }
            Peer::Unix { admitted: true, .. } => Ok((tenants.admin().clone(), None, None)),
            Peer::Unix { .. } => {
                Err(Problem::new(Code::Forbidden, "this user needs a credential to use the socket"))
            }
            Peer::Tcp { .. } => Err(Problem::new(
                Code::Unauthenticated,
                "authentication required: send a token in X-Auth-Token or Authorization, or a signature",
            )),
        },
        Claim::Token(token) => match tenants.of_token(token.expose().as_bytes()) {
            Some(tenant) => Ok((tenant.clone(), None, None)),
            None => Err(Problem::new(Code::Unauthenticated, "the token is not valid")),
        },
        Claim::Signed(signed) if bodied == BodyKind::Stated => {
            let stamp = signed.check_date(app.now())?;
            let stated = auth::stated(&parts.headers)?.ok_or_else(|| {
                let want = "X-Sdk-Content-Sha256: missing; state the hash of the body, which is read only after authentication";
                Problem::new(Code::Unauthenticated, want)
            })?;
            let (secret, tenant) = tenants.of_key(&signed.access).unzip();
            signed.verify(parts, query, stated, secret)?;
            let tenant =
                tenant.ok_or_else(|| Problem::internal("a signature was verified without a secret"))?;
            Ok((tenant.clone(), None, Some(stamp)))
        }
        Claim::Signed(signed) => {
            let stamp = signed.check_date(app.now())?;
            let (tenant, received) = verify(app, tenants, &signed, parts, query, body).await?;
            Ok((tenant, Some(received), Some(stamp)))
        }
    }
}

/// Verifies a signature over the body. An unknown key takes the same path, so that neither the answer nor the
/// time distinguishes it from a wrong signature. Its body is not kept.
async fn verify(
    app: &App,
    tenants: &Tenants,
    signed: &Signed,
    parts: &Parts,
    query: &Query,
    body: &Pending,
) -> Result<(TenantName, Received), Problem> {
    let known = tenants.of_key(&signed.access);
    let keep = if known.is_some() { Keep::Bytes(&app.room) } else { Keep::Hash };
    let received = body.receive(app.body_time, keep).await?;
    let (secret, tenant) = known.unzip();
    signed.verify(parts, query, received.sha256, secret)?;
    let tenant = tenant.ok_or_else(|| Problem::internal("a signature was verified without a secret"))?;
    Ok((tenant.clone(), received))
}

/// Gives the connection of an authenticated request the limits for valid credentials.
pub(super) fn authenticated(extensions: &Extensions) {
    if let Some(standing) = extensions.get::<Arc<ConnectionState>>() {
        standing.authenticate();
    }
}

/// Counts a failed authentication, and delays the answer if there are too many.
pub(super) async fn failed(app: &App, peer: &Peer, problem: Problem) -> Problem {
    if problem.code() == Code::Unauthenticated {
        app.parts.metrics.authentication_failure();
        if app.failures.take(&Origin::of(peer), Instant::now()).is_err() {
            tokio::time::sleep(FAILURE_DELAY).await;
        }
    }
    problem
}

/// Returns `true` if a request can start something, and records its signature. `false` if the signature might
/// have been used before.
pub(super) fn may_begin(app: &App, tenant: &TenantName, stamp: Option<Stamp>) -> Result<bool, Problem> {
    let Some(stamp) = stamp else { return Ok(true) };
    app.used.first(tenant, stamp, app.now()).map_err(|wait| {
        let message = "this tenant reached the maximum number of signed requests in 15 minutes: slow down";
        Problem::new(Code::TooMany, message).retry_after(wait)
    })
}

impl Caller {
    /// Returns `true` if the request can start something ([`may_begin`]).
    pub(super) fn may_begin(&self, app: &App) -> Result<bool, Problem> {
        may_begin(app, &self.tenant, self.stamp)
    }

    /// Returns `true` for the tenant `admin`.
    pub(super) fn is_admin(&self) -> bool {
        self.tenant.as_str() == ADMIN
    }

    /// Refuses a request of a tenant other than `admin`.
    pub(super) fn must_be_admin(&self) -> Result<(), Problem> {
        if self.is_admin() {
            return Ok(());
        }
        Err(Problem::new(Code::Forbidden, "only the tenant admin can read this"))
    }

    /// Returns `true` if the query requests the caches of all tenants (`tenants=all`), which only the tenant
    /// `admin` can read.
    pub(super) fn wants_all_tenants(&self) -> Result<bool, Problem> {
        match self.query.one("tenants")? {
            None => Ok(false),
            Some("all") => self.must_be_admin().map(|()| true),
            Some(_) => Err(Problem::invalid("query: tenants: want all, or nothing for your own")),
        }
    }

    /// Refuses a request that starts something if its signature might have been used before.
    pub(super) fn refuse_replay(&self, app: &App) -> Result<(), Problem> {
        if self.may_begin(app)? { Ok(()) } else { Err(Error::Replayed.into()) }
    }

    /// Returns the cache that the path names. A malformed ID is reported like an unknown one. The path is
    /// used without decoding: no ID contains an escape, so the routed path and the signed path cannot name
    /// two caches.
    pub(super) fn cache(&self) -> Result<CacheId, Problem> {
        let mut segments = self.route.split('/').zip(self.path.split('/'));
        let named = segments.find(|(template, _)| *template == "{id}");
        let id: CacheId = named.and_then(|(_, id)| id.parse().ok()).ok_or_else(Problem::no_such_cache)?;
        tracing::Span::current().record("cache", tracing::field::display(id));
        Ok(id)
    }

    /// Returns the body if its type is JSON. Parameters of the type are ignored.
    pub(super) fn json(&self) -> Result<&[u8], Problem> {
        let mut types = self.headers.get_all(header::CONTENT_TYPE).iter();
        let given = types.next().and_then(|value| value.to_str().ok());
        let essence = given.and_then(|value| value.split(';').next()).map(str::trim);
        let json = essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
        if json && types.next().is_none() {
            return Ok(&self.body);
        }
        Err(Problem::new(Code::MediaType, "Content-Type: want application/json"))
    }

    /// Returns an answer with an `ETag` of its content, or 304 if the client has the same content (RFC 9110,
    /// 13.1.2).
    pub(super) fn tagged(&self, answer: &impl Serialize) -> Result<Response, Problem> {
        let body = serde_json::to_vec(answer);
        let body = body.map_err(|e| Problem::internal(format!("an answer cannot be written: {e}")))?;
        let tag = format!("\"{}\"", &hex(&Sha256::digest(&body))[..32]);
        let known =
            self.headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        let known = known
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag);
        // Shared caches must not store the answer, and a client must revalidate its copy.
        let head = [(header::ETAG, tag.as_str()), (header::CACHE_CONTROL, "private, no-cache")];
        Ok(match known {
            true => (StatusCode::NOT_MODIFIED, head).into_response(),
            false => (head, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        })
    }

    /// Returns the `Idempotency-Key`, with the hash of its request.
    pub(super) fn idempotency_key(&self) -> Result<Option<IdempotencyKey>, Problem> {
        let Some(key) = key(&self.headers)? else { return Ok(None) };
        let mut request = Sha256::new();
        for part in [self.method.as_bytes(), self.path.as_bytes(), &self.body] {
            request.update((part.len() as u64).to_be_bytes());
            request.update(part);
        }
        Ok(Some(IdempotencyKey { key, request: request.finalize().into() }))
    }

    /// Returns the number of the last event that the client has (`Last-Event-ID`). 0 if the header is
    /// missing.
    pub(super) fn last_event(&self) -> Result<u64, Problem> {
        let Some(value) = self.headers.get("last-event-id") else { return Ok(0) };
        let number = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let number = number.and_then(|text| text.parse().ok());
        number.ok_or_else(|| Problem::invalid("Last-Event-ID: want the number of an event"))
    }
}

/// Returns the `Idempotency-Key`, checked for its form.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let visible = !key.is_empty() && key.len() <= MAX_KEY_LENGTH && key.bytes().all(|b| b.is_ascii_graphic());
    if !visible || values.next().is_some() {
        return Err(Problem::invalid(format!(
            "Idempotency-Key: want it once, 1 to {MAX_KEY_LENGTH} visible ASCII characters"
        )));
    }
    Ok(Some(key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(headers: &[(&'static str, &str)], body: &'static str) -> Caller {
        let headers = headers.iter().map(|(name, value)| {
            (axum::http::HeaderName::from_static(name), axum::http::HeaderValue::from_str(value).unwrap())
        });
        Caller {
            tenant: "a".parse().unwrap(),
            query: Query::default(),
            method: "POST".into(),
            path: "/v5/imagecaches".into(),
            route: "/v5/imagecaches".into(),
            headers: headers.collect(),
            body: Bytes::from_static(body.as_bytes()),
            stamp: None,
            _place: None,
        }
    }

    #[test]
    fn media_types() {
        for good in ["application/json", "Application/JSON;charset=UTF-8", "application/json ; a=b"] {
            assert!(caller(&[("content-type", good)], "{}").json().is_ok(), "{good}");
        }
        for bad in ["text/plain", "application/jsonx", "", "application/bson"] {
            assert_eq!(caller(&[("content-type", bad)], "{}").json().unwrap_err().code(), Code::MediaType);
        }
        assert!(caller(&[], "{}").json().is_err());
        let twice = [("content-type", "application/json"), ("content-type", "text/plain")];
        assert!(caller(&twice, "{}").json().is_err());
    }

    #[test]
    fn idempotency_keys() {
        let key = |value: &str, body| caller(&[("idempotency-key", value)], body).idempotency_key();
        let first = key("k-1", "{}").unwrap().unwrap();
        assert_eq!(key("k-1", "{}").unwrap().unwrap(), first);
        assert_ne!(key("k-1", "{ }").unwrap().unwrap().request, first.request);
        assert!(caller(&[], "").idempotency_key().unwrap().is_none());
        assert!(key(&"k".repeat(255), "").is_ok());
        for bad in ["", "a b", &"k".repeat(256)] {
            assert!(key(bad, "").is_err(), "{bad}");
        }
        assert!(caller(&[("idempotency-key", "a"), ("idempotency-key", "a")], "").idempotency_key().is_err());
    }

    #[test]
    fn the_last_event() {
        let last = |value: &str| caller(&[("last-event-id", value)], "").last_event();
        assert_eq!(last("17").unwrap(), 17);
        assert_eq!(caller(&[], "").last_event().unwrap(), 0);
        for bad in ["", "x", "+1", "-1", "99999999999999999999"] {
            assert!(last(bad).is_err(), "{bad}");
        }
    }
}
