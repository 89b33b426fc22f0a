//! Tokens: what the distribution token specification and its OAuth2 form ask, and where a realm may lie.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::address::{self, Zone};
use super::auth::basic;
use super::error::{Fault, Searched, clean_url};
use super::hosts::Tls;
use super::request;
use super::retry;
use super::transport::{Origin, Outgoing, Reply, Transport};
use larder_model::credential::Credential;

/// Tokens' answers larger than this are refused, bytes.
const MAX_BODY: usize = 1 << 20;
/// Life of a token that does not say (distribution, token.md).
const DEFAULT_LIFE: u64 = 60;
/// No token is trusted longer, seconds.
const MAX_LIFE: u64 = 24 * 3600;

/// The registry that a token is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audience<'a> {
    /// URL of the registry's endpoint.
    pub(crate) registry: &'a Url,
    /// How TLS is spoken with it, and so with a realm on the same host.
    pub(crate) tls: &'a Tls,
    /// Where the registry's own address lies; realms elsewhere may lie no further in.
    pub(crate) zone: Zone,
    pub(crate) repository: &'a str,
}

/// What the challenge asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order<'a> {
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    pub(crate) scope: Option<&'a str>,
}

/// A token, ready to send, and when it ends.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    pub(crate) expires: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Fetches a token with `credential`, or an anonymous one.
pub(crate) async fn fetch(
    transport: &Transport,
    audience: Audience<'_>,
    order: Order<'_>,
    credential: Option<&Credential>,
) -> Result<Token, Fault> {
    let mut url = check_realm(order.realm, audience)?;
    let same_host = url.host_str() == audience.registry.host_str();
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(order.service.map(|service| ("service", service)));
    let scope = pull_scope(order.scope, audience.repository);
    fields.push(("scope", &scope));

    let mut headers = HeaderMap::new();
    let mut form = None;
    if let Some(Credential::IdentityToken(secret)) = credential {
        fields.extend([
            ("grant_type", "refresh_token"),
            ("client_id", "larder"),
            ("refresh_token", secret.expose()),
        ]);
        let mut encoder = url.clone();
        encoder.set_query(None);
        encoder.query_pairs_mut().extend_pairs(fields);
        form = encoder.query().map(str::to_owned);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    } else {
        url.query_pairs_mut().extend_pairs(fields);
        if let Some(Credential::Basic { username, password }) = credential {
            headers.insert(AUTHORIZATION, basic(username, password.expose())?);
        }
    }
    let none = Tls::default();
    let tls = if same_host { audience.tls } else { &none };
    let within = if same_host { Zone::Loopback } else { audience.zone };
    let sent = Instant::now();
    let outgoing = Outgoing { url: url.clone(), tls, within, headers, form, idle: None };
    let (url, mut reply) = send(transport, outgoing).await?;
    // A server may echo what it was sent.
    let secret = match credential {
        Some(Credential::Basic { password, .. }) => password.expose(),
        Some(Credential::IdentityToken(token)) => token.expose(),
        None => "",
    };
    let at = |text: String| {
        let text = if secret.is_empty() { text } else { text.replace(secret, "[redacted]") };
        format!("token server {}: {text}", clean_url(&url))
    };
    match reply.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => {
            let reason = at(reply.complaint().await);
            return Err(Fault::Denied { reason, searched: Searched::Tried(1) });
        }
        status if retry::is_transient(status) => {
            let wait = retry::retry_after(reply.headers(), chrono::Utc::now());
            return Err(Fault::Transient { reason: at(reply.complaint().await), wait });
        }
        status if request::is_redirect(status) => {
            return Err(Fault::Refused(at(format!("redirects more than {} times", request::MAX_HOPS))));
        }
        _ => return Err(Fault::Invalid(at(reply.complaint().await))),
    }
    let body = reply.whole(MAX_BODY).await?;
    parse(&body, sent).map_err(|reason| Fault::Corrupt(at(reason)))
}

/// Sends a request and follows redirects within its origin. What stands in it may go nowhere else. Returns the last URL.
async fn send(transport: &Transport, outgoing: Outgoing<'_>) -> Result<(Url, Reply), Fault> {
    let Outgoing { mut url, tls, within, headers, form, .. } = outgoing;
    let mut hops = 0;
    loop {
        let (headers, form) = (headers.clone(), form.clone());
        let reply =
            transport.send(Outgoing { url: url.clone(), tls, within, headers, form, idle: None }).await?;
        if !request::is_redirect(reply.status()) || hops == request::MAX_HOPS {
            return Ok((url, reply));
        }
        let next = request::target(&url, &reply)?;
        if Origin::of(&next) != Origin::of(&url) {
            let (from, to) = (clean_url(&url), clean_url(&next));
            return Err(Fault::Refused(format!(
                "the token server {from} redirects to {to}, and credentials follow no redirect to another host"
            )));
        }
        // Reads the rest, so that the connection can be used again.
        reply.complaint().await;
        url = next;
        hops += 1;
    }
}

fn parse(body: &[u8], sent: Instant) -> Result<Token, String> {
    // The parser's own words would quote the token.
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| "its answer is not a token in JSON".to_owned())?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("its token is empty or holds characters that no token has".into());
    }
    let mut header =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| "its token is malformed".to_owned())?;
    header.set_sensitive(true);
    let life = answer.expires_in.unwrap_or(DEFAULT_LIFE).clamp(1, MAX_LIFE);
    // Renewed a tenth before its time, so that it does not end on the way.
    let expires = sent + Duration::from_millis(life * 900);
    Ok(Token { header, expires })
}

/// The scope of the challenge reduced to pulling: a registry cannot make us ask for more.
fn pull_scope(scope: Option<&str>, repository: &str) -> String {
    let name =
        scope.and_then(|scope| scope.strip_prefix("repository:")).and_then(|rest| rest.rsplit_once(':'));
    let plain = |name: &&str| !name.contains(char::is_whitespace);
    format!("repository:{}:pull", name.map(|(name, _)| name).filter(plain).unwrap_or(repository))
}

/// Whether credentials may go to `realm` (CVE-2026-48978): the registry's scheme or better, another host only by
/// https, an address of this machine only when the registry is there too.
fn check_realm(realm: &str, audience: Audience<'_>) -> Result<Url, Fault> {
    let url =
        Url::parse(realm).map_err(|_| Fault::Refused("the realm of its challenge is not a URL".into()))?;
    let refuse = |why: &str| {
        Err(Fault::Refused(format!("credentials do not go to the realm {}: {why}", clean_url(&url))))
    };
    let registry = audience.registry;
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("it holds a user name");
    }
    let home = |url: &Url| url.host_str().is_some_and(address::is_loopback_name);
    if Origin::of(&url) == Origin::of(registry) {
        return Ok(url);
    }
    match url.scheme() {
        "https" => {}
        "http" if registry.scheme() != "http" => {
            return refuse("the registry speaks https, the realm does not");
        }
        "http" if url.host_str() == registry.host_str() || (home(&url) && home(registry)) => {}
        "http" => return refuse("it is another host, without https"),
        _ => return refuse("it is neither http nor https"),
    }
    if home(&url) && !home(registry) {
        return refuse("it is this machine, the registry is not");
    }
    let same_host = url.host_str() == registry.host_str();
    if !same_host && address::literal(&url).is_some_and(|ip| Zone::of(ip) > audience.zone) {
        return refuse("it is further inside of our network than the registry");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn realms() {
        for (registry, realm, allowed) in [
            ("https://r.io/v2", "https://r.io/token", true),
            ("https://r.io/v2", "https://auth.other.io/token", true),
            ("https://r.io/v2", "http://r.io/token", false),
            ("https://r.io/v2", "https://127.0.0.1/token", false),
            ("https://r.io/v2", "https://localhost/token", false),
            ("https://r.io/v2", "https://169.254.169.254/token", false),
            ("https://r.io/v2", "https://10.0.0.1/token", false),
            ("https://r.io/v2", "https://u:p@auth.io/token", false),
            ("https://r.io/v2", "file:///etc/passwd", false),
            ("https://r.io/v2", "/token", false),
            ("http://r.corp/v2", "http://r.corp:5001/token", true),
            ("http://r.corp/v2", "http://other.corp/token", false),
            ("http://r.corp/v2", "https://other.corp/token", true),
            ("http://127.0.0.1:5000/v2", "http://localhost:5001/token", true),
            ("http://127.0.0.1:5000/v2", "http://169.254.169.254/token", false),
        ] {
            let registry: Url = registry.parse().unwrap();
            let zone = if registry.host_str() == Some("127.0.0.1") { Zone::Loopback } else { Zone::Public };
            let audience = Audience { registry: &registry, tls: &Tls::default(), zone, repository: "a" };
            assert_eq!(check_realm(realm, audience).is_ok(), allowed, "{registry} {realm}");
        }
    }

    #[test]
    fn scopes_are_for_pulling_only() {
        for (scope, want) in [
            (None, "repository:a/b:pull"),
            (Some("repository:proxy/a/b:pull,push"), "repository:proxy/a/b:pull"),
            (Some("registry:catalog:*"), "repository:a/b:pull"),
            (Some("repository:a:pull repository:b:pull"), "repository:a/b:pull"),
        ] {
            assert_eq!(pull_scope(scope, "a/b"), want);
        }
    }

    #[test]
    fn answers() {
        let now = Instant::now();
        for (body, good) in [
            (r#"{"token":"abc","expires_in":300}"#, true),
            (r#"{"access_token":"abc"}"#, true),
            (r#"{"token":"","access_token":"abc"}"#, true),
            (r#"{"token":"a\r\nX-Evil: 1"}"#, false),
            (r#"{"token":"a b"}"#, false),
            (r#"{"token":17}"#, false),
            (r#"{}"#, false),
            ("<html>", false),
        ] {
            let token = parse(body.as_bytes(), now);
            assert_eq!(token.is_ok(), good, "{body}");
            if let Ok(token) = token {
                assert!(!format!("{token:?}").contains("abc"));
            }
        }
        let long = parse(br#"{"token":"a","expires_in":18446744073709551615}"#, now).unwrap();
        assert!(long.expires <= now + Duration::from_secs(MAX_LIFE));
    }
}
