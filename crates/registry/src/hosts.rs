//! Hosts that serve a registry: its mirrors in order, then itself; from `larder.toml` and containerd's
//! `certs.d`.

mod certs_d;

use std::collections::BTreeMap;
use std::path::PathBuf;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::address;
use super::error::Error;

/// Name of Docker Hub in references, and the host that serves it.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// Configuration of all registries, as plain data.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Configuration by registry name, as in a reference (`docker.io`, `registry.corp:5000`).
    pub registries: BTreeMap<String, Host>,
    /// Directories in containerd's `certs.d` convention (containerd, docs/hosts.md) for all other
    /// registries.
    pub certs_d: Vec<PathBuf>,
}

/// Configuration of a single registry.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The upstream itself. An empty URL means the name of the registry.
    pub server: Server,
    /// Mirrors, tried in order before the upstream.
    pub mirrors: Vec<Mirror>,
}

/// Configuration of a mirror of a registry.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// Address of the mirror and how to connect to it.
    pub server: Server,
    /// Restricts the mirror to repositories at or below this one. `None` means all.
    pub prefix: Option<String>,
    /// Lets the mirror resolve tags. Otherwise it serves only content by digest.
    pub resolve: bool,
}

/// A server of the distribution protocol.
#[derive(Clone, Debug, Default)]
pub struct Server {
    /// `https://host[:port][/path]`. The scheme is optional.
    pub url: String,
    /// Uses http if `true` and https if `false`, if the URL has no scheme. `None` means https. A server on
    /// loopback without TLS settings, or with `skip_verify`, can then also use http.
    pub plain_http: Option<bool>,
    /// Uses the path of the URL unchanged, without appending `/v2`.
    pub override_path: bool,
    /// TLS settings for this server.
    pub tls: Tls,
    /// Headers sent with each request to this server.
    pub headers: Vec<(String, String)>,
}

/// TLS settings for one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// PEM files of CAs that are trusted in addition to the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files of the client certificate and its key. Both can be in one file.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Disables verification of the server's certificate.
    pub skip_verify: bool,
}

/// A server with parsed URL and headers, ready for requests.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Scheme, host, port and path including `v2`, without a trailing slash.
    pub(crate) base: Url,
    /// The base with http, for a server that might not support TLS.
    pub(crate) plain: Option<Url>,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    /// The mirrored registry (`ns=` of containerd). `None` for the upstream itself.
    pub(crate) namespace: Option<String>,
    /// Name under which its credentials are looked up.
    pub(crate) credentials_for: String,
}

impl Endpoint {
    /// Returns host and port, for messages.
    pub(crate) fn host(&self) -> String {
        authority(&self.base)
    }

    /// Returns the URL of `path` (`manifests/latest`, `tags/list?n=9`) in `repository`.
    pub(crate) fn url(&self, repository: &str, path: &str) -> Url {
        let mut url = self.base.clone();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        url.set_query(query);
        url.set_path(&format!("{}/{repository}/{path}", self.base.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

impl Hosts {
    /// Reads the configuration of `registries` from the directories and drops the directories. Afterwards no
    /// lookup of a host opens a file.
    ///
    /// # Errors
    /// [`Error::Setup`] if a `hosts.toml` cannot be read or parsed.
    pub fn load_certs_d<'a>(&mut self, registries: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let directories = std::mem::take(&mut self.certs_d);
        for registry in registries {
            if !self.registries.contains_key(registry)
                && let Some(host) = certs_d::load(&directories, registry)?
            {
                self.registries.insert(registry.to_owned(), host);
            }
        }
        Ok(())
    }

    /// Returns the TLS settings of the hosts that serve `registry`.
    pub(crate) fn tls(&self, registry: &str) -> impl Iterator<Item = &Tls> {
        let host = self.registries.get(registry).into_iter();
        host.flat_map(|host| host.mirrors.iter().map(|mirror| &mirror.server).chain([&host.server]))
            .map(|server| &server.tls)
    }

    /// Returns the name under which credentials are looked up, for each endpoint of `repository`.
    ///
    /// # Errors
    /// The configuration of the registry is invalid.
    pub fn credential_names(
        &self,
        registry: &str,
        repository: &str,
        tag: bool,
    ) -> Result<Vec<String>, Error> {
        let endpoints = self.endpoints(registry, repository, tag)?;
        Ok(endpoints.into_iter().map(|endpoint| endpoint.credentials_for).collect())
    }

    /// Returns the endpoints of `repository` in `registry` in the order of requests. The last one is the
    /// upstream, which is always included.
    pub(crate) fn endpoints(
        &self,
        registry: &str,
        repository: &str,
        tag: bool,
    ) -> Result<Vec<Endpoint>, Error> {
        let host = match self.registries.get(registry) {
            Some(host) => host.clone(),
            None => certs_d::load(&self.certs_d, registry)?.unwrap_or_default(),
        };
        let matching = |mirror: &&Mirror| (mirror.resolve || !tag) && mirror.covers(repository);
        let mut endpoints = Vec::new();
        for mirror in host.mirrors.iter().filter(matching) {
            let mut endpoint = endpoint(&mirror.server, None)?;
            endpoint.namespace = Some(registry.to_owned());
            endpoints.push(endpoint);
        }
        endpoints.push(endpoint(&host.server, Some(registry))?);
        Ok(endpoints)
    }
}

impl Mirror {
    fn covers(&self, repository: &str) -> bool {
        self.prefix.as_deref().is_none_or(|prefix| {
            let rest = repository.strip_prefix(prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

fn endpoint(server: &Server, registry: Option<&str>) -> Result<Endpoint, Error> {
    let given = match registry {
        Some(registry) if server.url.is_empty() && registry == DOCKER_HUB.0 => DOCKER_HUB.1,
        Some(registry) if server.url.is_empty() => registry,
        _ => &server.url,
    };
    let wrong = |reason: &str| Error::Setup(format!("the registry URL {given:?} {reason}"));
    let (mut base, mut plain) = with_scheme(given, server).ok_or_else(|| wrong("is not a URL"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err(wrong("is neither http nor https"));
    }
    if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
        return Err(wrong("contains a user name, a password or a query: provide credentials as a secret"));
    }
    let path = base.path().trim_end_matches('/').to_owned();
    if !server.override_path && !path.ends_with("/v2") {
        for url in [Some(&mut base), plain.as_mut()].into_iter().flatten() {
            url.set_path(&format!("{path}/v2"));
        }
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &server.headers {
        let name = HeaderName::try_from(name).map_err(|_| wrong("has a header with a malformed name"))?;
        let mut value =
            HeaderValue::try_from(value).map_err(|_| wrong("has a header with a malformed value"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    let credentials_for = registry.map_or_else(|| authority(&base), str::to_owned);
    Ok(Endpoint { base, plain, tls: server.tls.clone(), headers, namespace: None, credentials_for })
}

pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns the URL of a server, and its URL with http if that scheme is only tried after https.
fn with_scheme(given: &str, server: &Server) -> Option<(Url, Option<Url>)> {
    if given.contains("://") {
        return Some((Url::parse(given).ok()?, None));
    }
    let https = Url::parse(&format!("https://{given}")).ok()?;
    let http = Url::parse(&format!("http://{given}")).ok()?;
    let is_open = address::is_loopback_name(https.host_str()?) && server.tls == Tls::default();
    Some(match server.plain_http {
        Some(true) => (http, None),
        None if is_open || server.tls.skip_verify => (https, Some(http)),
        Some(false) | None => (https, None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(hosts: &Hosts, registry: &str, repository: &str, tag: bool) -> Vec<String> {
        let endpoints = hosts.endpoints(registry, repository, tag).unwrap();
        endpoints.iter().map(|e| e.url(repository, "manifests/1").to_string()).collect()
    }

    #[test]
    fn schemes_and_docker_hub() {
        for (registry, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/a/b/manifests/1"),
            ("r.io:5000", "https://r.io:5000/v2/a/b/manifests/1"),
            ("localhost:5000", "https://localhost:5000/v2/a/b/manifests/1"),
        ] {
            assert_eq!(urls(&Hosts::default(), registry, "a/b", true), [url]);
        }
    }

    #[test]
    fn plain_http_is_tried_only_where_it_is_allowed() {
        let tls = |skip_verify, ca: &[&str]| Tls {
            ca: ca.iter().map(PathBuf::from).collect(),
            skip_verify,
            client: None,
        };
        for (url, plain_http, tls, bases) in [
            (
                "localhost:443",
                None,
                tls(false, &[]),
                &["https://localhost/v2", "http://localhost:443/v2"][..],
            ),
            ("[::1]:80", None, tls(false, &[]), &["https://[::1]:80/v2", "http://[::1]/v2"]),
            ("127.3.2.1", Some(false), tls(false, &[]), &["https://127.3.2.1/v2"]),
            ("127.3.2.1", Some(true), tls(false, &[]), &["http://127.3.2.1/v2"]),
            ("127.3.2.1", None, tls(false, &["/ca"]), &["https://127.3.2.1/v2"]),
            ("https://127.3.2.1", None, tls(true, &[]), &["https://127.3.2.1/v2"]),
            ("r.io", None, tls(false, &[]), &["https://r.io/v2"]),
            ("r.io", None, tls(true, &[]), &["https://r.io/v2", "http://r.io/v2"]),
            ("r.io", Some(false), tls(true, &[]), &["https://r.io/v2"]),
        ] {
            let server = Server { url: url.into(), plain_http, tls, ..Server::default() };
            let Endpoint { base, plain, .. } = endpoint(&server, None).unwrap();
            let found: Vec<String> = [Some(base), plain].into_iter().flatten().map(Into::into).collect();
            assert_eq!(found, bases, "{server:?}");
        }
    }

    #[test]
    fn mirrors_by_prefix_and_capability() {
        let mirror = |url: &str, prefix: Option<&str>, resolve| Mirror {
            server: Server { url: url.into(), ..Server::default() },
            prefix: prefix.map(Into::into),
            resolve,
        };
        let host = Host {
            server: Server { plain_http: Some(true), ..Server::default() },
            mirrors: vec![mirror("https://all.io/x", None, false), mirror("team.io", Some("team"), true)],
        };
        let hosts = Hosts { registries: BTreeMap::from([("r.io".to_owned(), host)]), certs_d: vec![] };
        assert_eq!(
            urls(&hosts, "r.io", "team/app", false),
            [
                "https://all.io/x/v2/team/app/manifests/1?ns=r.io",
                "https://team.io/v2/team/app/manifests/1?ns=r.io",
                "http://r.io/v2/team/app/manifests/1"
            ]
        );
        assert_eq!(urls(&hosts, "r.io", "team/app", true).len(), 2);
        assert_eq!(urls(&hosts, "r.io", "teamwork/app", true).len(), 1);
    }

    #[test]
    fn urls_with_secrets_or_other_schemes_are_refused() {
        for url in ["https://u:p@r.io", "ftp://r.io", "https://r.io/?a=b", "https://"] {
            let server = Server { url: url.into(), ..Server::default() };
            assert!(endpoint(&server, None).is_err(), "{url}");
        }
    }
}
