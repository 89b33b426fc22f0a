//! Token requests of the distribution token specification and its OAuth2 form, and the rules for realms.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::time::Instant;

use super::address::{self, Zone};
use super::basic::basic;
use super::error::{CredentialSearch, Fault, clean_url};
use super::hosts::Tls;
use super::reply::Reply;
use super::transport::{Origin, Outgoing, Transport};
use super::{redirect, retry};
use larder_model::credential::Credential;

/// Maximum size of a token response, in bytes.
const MAX_BODY: usize = 1 << 20;
/// Lifetime of a token without `expires_in`, in seconds (distribution, token.md).
const DEFAULT_LIFETIME: u64 = 60;
/// Maximum lifetime of a token, in seconds.
const MAX_LIFETIME: u64 = 24 * 3600;

/// Registry for which a token is requested.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Audience<'a> {
    /// URL of the registry's endpoint.
    pub(crate) registry: &'a Url,
    /// TLS settings of the registry, which also apply to a realm on the same host.
    pub(crate) tls: &'a Tls,
    /// Zone of the registry's own address. Realms on other hosts must not be further inside.
    pub(crate) zone: Zone,
    pub(crate) repository: &'a str,
}

/// Parameters of the challenge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenRequest<'a> {
    pub(crate) realm: &'a str,
    pub(crate) service: Option<&'a str>,
    pub(crate) scope: Option<&'a str>,
}

/// A token as a header, and its expiry time.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    pub(crate) expires: Instant,
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Fetches a token with `credential`, or an anonymous token.
pub(crate) async fn fetch(
    transport: &Transport,
    audience: Audience<'_>,
    request: TokenRequest<'_>,
    credential: Option<&Credential>,
) -> Result<Token, Fault> {
    let mut url = check_realm(request.realm, audience)?;
    let same_host = url.host_str() == audience.registry.host_str();
    let mut fields: Vec<(&str, &str)> = Vec::new();
    fields.extend(request.service.map(|service| ("service", service)));
    let scope = pull_scope(request.scope, audience.repository);
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
    // A server might echo the secret that it received.
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
            let reason = at(reply.error_text().await);
            return Err(Fault::Denied { reason, searched: CredentialSearch::Tried(1) });
        }
        status if retry::is_transient(status) => {
            let wait = retry::retry_after(reply.headers(), chrono::Utc::now());
            return Err(Fault::Transient { reason: at(reply.error_text().await), wait });
        }
        status if redirect::is_redirect(status) => {
            return Err(Fault::Refused(at(format!("it redirected more than {} times", redirect::MAX_HOPS))));
        }
        _ => return Err(Fault::Invalid(at(reply.error_text().await))),
    }
    let body = reply.whole(MAX_BODY).await?;
    parse(&body, sent).map_err(|reason| Fault::Corrupt(at(reason)))
}

/// Sends a request and follows redirects within its origin. Its contents must not reach another origin.
/// Returns the last URL.
async fn send(transport: &Transport, outgoing: Outgoing<'_>) -> Result<(Url, Reply), Fault> {
    let Outgoing { mut url, tls, within, headers, form, .. } = outgoing;
    let mut hops = 0;
    loop {
        let (headers, form) = (headers.clone(), form.clone());
        let reply =
            transport.send(Outgoing { url: url.clone(), tls, within, headers, form, idle: None }).await?;
        if !redirect::is_redirect(reply.status()) || hops == redirect::MAX_HOPS {
            return Ok((url, reply));
        }
        let next = redirect::target(&url, &reply)?;
        if Origin::of(&next) != Origin::of(&url) {
            let (from, to) = (clean_url(&url), clean_url(&next));
            return Err(Fault::Refused(format!(
                "the token server {from} redirects to {to}, and credentials are not sent to another host"
            )));
        }
        // Reads the rest of the body, so that the connection can be reused.
        reply.error_text().await;
        url = next;
        hops += 1;
    }
}

fn parse(body: &[u8], sent: Instant) -> Result<Token, String> {
    // The parser's own message would quote the token.
    let response: TokenResponse =
        serde_json::from_slice(body).map_err(|_| "its response is not a token in JSON".to_owned())?;
    let token =
        response.token.filter(|token| !token.is_empty()).or(response.access_token).unwrap_or_default();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("its token is empty or contains invalid characters".into());
    }
    let mut header =
        HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| "its token is malformed".to_owned())?;
    header.set_sensitive(true);
    let lifetime = response.expires_in.unwrap_or(DEFAULT_LIFETIME).clamp(1, MAX_LIFETIME);
    // Renew the token after nine tenths of its lifetime, so that it does not expire in flight.
    let expires = sent + Duration::from_millis(lifetime * 900);
    Ok(Token { header, expires })
}

/// Reduces the scope of the challenge to pulling: a registry cannot make the client request more.
fn pull_scope(scope: Option<&str>, repository: &str) -> String {
    let name =
        scope.and_then(|scope| scope.strip_prefix("repository:")).and_then(|rest| rest.rsplit_once(':'));
    let plain = |name: &&str| !name.contains(char::is_whitespace);
    format!("repository:{}:pull", name.map(|(name, _)| name).filter(plain).unwrap_or(repository))
}

/// Checks that credentials can be sent to `realm` (CVE-2026-48978). It must use the registry's scheme or a
/// better one. Another host must use https. An address of this machine is allowed only if the registry is
/// there, too.
fn check_realm(realm: &str, audience: Audience<'_>) -> Result<Url, Fault> {
    let url =
        Url::parse(realm).map_err(|_| Fault::Refused("the realm of its challenge is not a URL".into()))?;
    let refuse = |why: &str| {
        Err(Fault::Refused(format!("credentials are not sent to the realm {}: {why}", clean_url(&url))))
    };
    let registry = audience.registry;
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("it contains a user name");
    }
    let home = |url: &Url| url.host_str().is_some_and(address::is_loopback_name);
    if Origin::of(&url) == Origin::of(registry) {
        return Ok(url);
    }
    match url.scheme() {
        "https" => {}
        "http" if registry.scheme() != "http" => {
            return refuse("the registry uses https, the realm does not");
        }
        "http" if url.host_str() == registry.host_str() || (home(&url) && home(registry)) => {}
        "http" => return refuse("it is another host and does not use https"),
        _ => return refuse("it is neither http nor https"),
    }
    if home(&url) && !home(registry) {
        return refuse("it is this machine, the registry is not");
    }
    let same_host = url.host_str() == registry.host_str();
    if !same_host && address::literal(&url).is_some_and(|ip| Zone::of(ip) > audience.zone) {
        return refuse("it is further inside the network than the registry");
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
        assert!(long.expires <= now + Duration::from_secs(MAX_LIFETIME));
    }
}
