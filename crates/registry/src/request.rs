//! One GET with everything that belongs to it but retries: authorization, redirects by hand, and what a status means.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE};
use reqwest::{StatusCode, Url};

use super::Inner;
use super::address::Zone;
use super::auth::{Issuer, Session};
use super::challenge;
use super::error::{Fault, Searched, clean_url};
use super::hosts::{Endpoint, Tls};
use super::retry;
use super::token::Audience;
use super::transport::{Origin, Outgoing, Reply};

/// Redirects followed for one request.
pub(super) const MAX_HOPS: usize = 10;
/// Rounds of 401 for one request: many credentials may match.
const MAX_ROUNDS: usize = 64;

/// What to get.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) repository: &'a str,
    /// `manifests/<tag or digest>` or `blobs/<digest>`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'static str>,
    /// First and last byte.
    pub(crate) range: Option<(u64, u64)>,
    /// Gets the time that was spent waiting for a free connection, microseconds.
    pub(crate) idle: Option<&'a AtomicU64>,
}

impl Ask<'_> {
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

/// Gets from a registry or a mirror. The reply has status 200 or 206.
pub(crate) async fn get(inner: &Inner, endpoint: &Endpoint, ask: Ask<'_>) -> Result<Reply, Fault> {
    let url = endpoint.url(ask.repository, ask.path);
    let session = inner.session(&endpoint.base, ask.repository);
    for _ in 0..MAX_ROUNDS {
        let zone = session.zone.get().copied().unwrap_or(Zone::Public);
        let issuer = issuer(inner, endpoint, ask.repository, zone);
        let (generation, authorization) = session.authorization(issuer).await?;
        let mut headers = ask.headers()?;
        headers.extend(endpoint.headers.clone());
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        // A person named this registry, so it may lie anywhere but where no registry lives.
        let outgoing = Outgoing {
            url: url.clone(),
            tls: &endpoint.tls,
            within: Zone::Loopback,
            headers: headers.clone(),
            form: None,
            idle: ask.idle,
        };
        let reply = inner.transport.send(outgoing).await?;
        let host = endpoint.host();
        for words in inner.warned.new_ones(&host, reply.headers()) {
            inner.observer.warned(&host, &words);
        }
        let zone = *session.zone.get_or_init(|| reply.zone());
        let status = reply.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let challenge = challenge::strongest(reply.headers());
            let expired = status == StatusCode::UNAUTHORIZED;
            let reason = reply.complaint().await;
            let issuer = self::issuer(inner, endpoint, ask.repository, zone);
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
            idle: ask.idle,
        };
        return follow(inner, url, headers, reply, route).await;
    }
    Err(Fault::Denied {
        reason: "it keeps asking for other credentials".into(),
        searched: Searched::NotAsked,
    })
}

/// Gets from a foreign location of a layer (`urls`): https, the internet alone, no credentials (CVE-2020-15157).
pub(crate) async fn get_foreign(inner: &Inner, url: &Url, ask: Ask<'_>) -> Result<Reply, Fault> {
    if url.scheme() != "https" || !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::Refused(format!("the foreign location {} is not plain https", clean_url(url))));
    }
    let tls = Tls::default();
    let headers = ask.headers()?;
    let outgoing = Outgoing {
        url: url.clone(),
        tls: &tls,
        within: Zone::Public,
        headers: headers.clone(),
        form: None,
        idle: ask.idle,
    };
    let reply = inner.transport.send(outgoing).await?;
    let route = Route {
        home: Origin::of(url),
        tls: &tls,
        zone: Zone::Public,
        own_headers: Vec::new(),
        idle: ask.idle,
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

/// Where a chain of redirects began: what holds at home holds nowhere else.
struct Route<'a> {
    home: Origin,
    tls: &'a Tls,
    /// Where home lies; a redirect leads no further in.
    zone: Zone,
    /// Headers of the endpoint's configuration, which may be secret.
    own_headers: Vec<HeaderName>,
    /// As of [`Ask`].
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
        if !is_redirect(reply.status()) {
            return judge(reply, (Origin::of(&url) != route.home).then(|| clean_url(&url))).await;
        }
        let next = target(&url, &reply)?;
        // Reads the rest, so that the connection can be used again.
        reply.complaint().await;
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
    Err(Fault::Refused(format!("more than {MAX_HOPS} redirects, the last to {}", clean_url(&url))))
}

/// Whether an answer of this status sends the client elsewhere.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect from `url` leads.
pub(super) fn target(url: &Url, reply: &Reply) -> Result<Url, Fault> {
    // Not only ASCII: servers write paths as they are, and a URL encodes them.
    let location = reply.headers().get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    let next = location.and_then(|location| url.join(location).ok());
    let next =
        next.ok_or_else(|| Fault::Corrupt(format!("{}, without a usable Location", reply.status())))?;
    let fall = url.scheme() == "https" && next.scheme() != "https";
    if fall || !matches!(next.scheme(), "http" | "https") {
        return Err(Fault::Refused(format!("a redirect from {} to {}", url.scheme(), clean_url(&next))));
    }
    Ok(next)
}

/// What a status means. `elsewhere` names the place if it is not the registry's.
async fn judge(reply: Reply, elsewhere: Option<String>) -> Result<Reply, Fault> {
    let status = reply.status();
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return match reply.encoding() {
            Some(coding) => {
                Err(Fault::Corrupt(format!("the body is coded as {coding}, though identity was asked for")))
            }
            None => Ok(reply),
        };
    }
    let wait = retry::retry_after(reply.headers(), chrono::Utc::now());
    let place = elsewhere.map(|url| format!("{url} answers ")).unwrap_or_default();
    let reason = format!("{place}{}", reply.complaint().await);
    Err(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Fault::Denied { reason, searched: Searched::NotAsked }
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
