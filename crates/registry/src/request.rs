//! One GET without retries: authorization, redirects followed by hand, and the meaning of each status.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{StatusCode, Url};

use super::address::Zone;
use super::auth::{Issuer, Session};
use super::error::{CredentialSearch, Fault, clean_url};
use super::hosts::{Endpoint, Tls};
use super::redirect::{self, MAX_HOPS};
use super::reply::Reply;
use super::token::Audience;
use super::transport::{Origin, Outgoing};
use super::{Inner, challenge, retry};

/// Maximum number of 401 responses for one request: many credentials can match.
const MAX_ROUNDS: usize = 64;

/// Description of a GET request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GetRequest<'a> {
    pub(crate) repository: &'a str,
    /// Path in the repository: `manifests/<tag or digest>`, `blobs/<digest>` or `tags/list?n=<number>`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'static str>,
    /// First and last byte to request.
    pub(crate) range: Option<(u64, u64)>,
    /// Counter to which the wait for a free connection is added, in microseconds.
    pub(crate) idle: Option<&'a AtomicU64>,
}

impl GetRequest<'_> {
    fn headers(&self) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some((first, last)) = self.range {
            let range = HeaderValue::try_from(format!("bytes={first}-{last}"));
            headers.insert(RANGE, range.map_err(|_| Fault::Invalid("malformed range".into()))?);
        }
        Ok(headers)
    }
}

/// Sends a GET to a registry or a mirror. The reply has status 200 or 206.
pub(crate) async fn get(inner: &Inner, endpoint: &Endpoint, request: GetRequest<'_>) -> Result<Reply, Fault> {
    let endpoint = &*inner.with_scheme(endpoint).await;
    let url = endpoint.url(request.repository, request.path);
    let session = inner.session(&endpoint.base, request.repository);
    for _ in 0..MAX_ROUNDS {
        let zone = session.zone.get().copied().unwrap_or(Zone::Public);
        let issuer = issuer(inner, endpoint, request.repository, zone);
        let (generation, authorization) = session.authorization(issuer).await?;
        let mut headers = request.headers()?;
        headers.extend(endpoint.headers.clone());
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        // This registry is configured or named by the user, so it can be in any zone except the forbidden
        // one.
        let outgoing = Outgoing {
            url: url.clone(),
            tls: &endpoint.tls,
            within: Zone::Loopback,
            headers: headers.clone(),
            form: None,
            idle: request.idle,
        };
        let reply = inner.transport.send(outgoing).await?;
        let host = endpoint.host();
        for text in inner.warned.take_new(&host, reply.headers()) {
            inner.observer.warned(&host, &text);
        }
        let zone = *session.zone.get_or_init(|| reply.zone());
        let status = reply.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let challenge = challenge::strongest(reply.headers());
            let expired = status == StatusCode::UNAUTHORIZED;
            let reason = reply.error_text().await;
            let issuer = self::issuer(inner, endpoint, request.repository, zone);
            session.refused(issuer, generation, expired, challenge, &reason).await?;
            continue;
        }
        if status.is_success() || status.is_redirection() {
            session.accepted(generation).await;
        }
        let route = Route {
            home: Origin::of(&url),
            tls: &endpoint.tls,
            zone,
            own_headers: endpoint.headers.keys().cloned().collect(),
            idle: request.idle,
        };
        return follow(inner, url, headers, reply, route).await;
    }
    Err(Fault::Denied {
        reason: "it repeatedly requires other credentials".into(),
        searched: CredentialSearch::NoChallenge,
    })
}

/// Sends a GET to a foreign location of a layer (`urls`): only https, only public addresses, no credentials
/// (CVE-2020-15157).
pub(crate) async fn get_foreign(inner: &Inner, url: &Url, request: GetRequest<'_>) -> Result<Reply, Fault> {
    if url.scheme() != "https" || !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::Refused(format!("the foreign location {} is not plain https", clean_url(url))));
    }
    let tls = Tls::default();
    let headers = request.headers()?;
    let outgoing = Outgoing {
        url: url.clone(),
        tls: &tls,
        within: Zone::Public,
        headers: headers.clone(),
        form: None,
        idle: request.idle,
    };
    let reply = inner.transport.send(outgoing).await?;
    let route = Route {
        home: Origin::of(url),
        tls: &tls,
        zone: Zone::Public,
        own_headers: Vec::new(),
        idle: request.idle,
    };
    follow(inner, url.clone(), headers, reply, route).await
}

fn issuer<'a>(inner: &'a Inner, endpoint: &'a Endpoint, repository: &'a str, zone: Zone) -> Issuer<'a> {
    Issuer {
        transport: &inner.transport,
        credentials: &*inner.credentials,
        registry: &endpoint.credentials_for,
        audience: Audience { registry: &endpoint.base, tls: &endpoint.tls, zone, repository },
        timeout: inner.options.timeouts.exchange,
    }
}

/// Start of a chain of redirects. Its TLS settings, headers and credentials apply to this origin only.
struct Route<'a> {
    home: Origin,
    tls: &'a Tls,
    /// Zone of the first origin; no redirect leads further inside.
    zone: Zone,
    /// Headers from the endpoint's configuration, which might be secret.
    own_headers: Vec<HeaderName>,
    /// Counter of [`GetRequest::idle`].
    idle: Option<&'a AtomicU64>,
}

async fn follow(
    inner: &Inner,
    mut url: Url,
    mut headers: HeaderMap,
    mut reply: Reply,
    route: Route<'_>,
) -> Result<Reply, Fault> {
    let elsewhere = Tls::default();
    for _ in 0..MAX_HOPS {
        if !redirect::is_redirect(reply.status()) {
            return check_status(reply, (Origin::of(&url) != route.home).then(|| clean_url(&url))).await;
        }
        let next = redirect::target(&url, &reply)?;
        // Reads the rest of the body, so that the connection can be reused.
        reply.error_text().await;
        let at_home = Origin::of(&next) == route.home;
        if Origin::of(&next) != Origin::of(&url) {
            headers.remove(AUTHORIZATION);
            for name in &route.own_headers {
                headers.remove(name);
            }
        }
        let (tls, within) = if at_home { (route.tls, Zone::Loopback) } else { (&elsewhere, route.zone) };
        url = next;
        reply = inner
            .transport
            .send(Outgoing {
                url: url.clone(),
                tls,
                within,
                headers: headers.clone(),
                form: None,
                idle: route.idle,
            })
            .await?;
    }
    Err(Fault::Refused(format!("more than {MAX_HOPS} redirects, the last one to {}", clean_url(&url))))
}

/// Turns the status of a response into a result. `elsewhere` is the URL of the response if it is not the
/// registry's.
async fn check_status(reply: Reply, elsewhere: Option<String>) -> Result<Reply, Fault> {
    let status = reply.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return match reply.encoding() {
            Some(coding) => Err(Fault::Corrupt(format!(
                "the body is encoded as {coding}, although identity was requested"
            ))),
            None => Ok(reply),
        };
    }
    let wait = retry::retry_after(reply.headers(), chrono::Utc::now());
    let place = elsewhere.map(|url| format!("{url} returned ")).unwrap_or_default();
    let reason = format!("{place}{}", reply.error_text().await);
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Fault::Denied { reason, searched: CredentialSearch::NoChallenge }
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => Fault::NotFound(reason),
        StatusCode::RANGE_NOT_SATISFIABLE => Fault::Range(reason),
        status if retry::is_transient(status) => Fault::Transient { reason, wait },
        _ => Fault::Invalid(reason),
    })
}

impl Inner {
    pub(super) fn session(&self, base: &Url, repository: &str) -> Arc<Session> {
        let mut sessions = self.sessions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(sessions.entry((Origin::of(base), repository.to_owned())).or_default())
    }
}
