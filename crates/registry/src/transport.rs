//! One exchange on the wire: connections, timeouts, bounded bodies. Does not handle tokens, redirects or
//! retries.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity, StatusCode, Url};
use tokio::time::Instant;

use super::address::{self, CheckedResolver, Rules, Zone};
use super::error::{Error, Fault};
use super::files::Files;
use super::host_limit::HostLimit;
use super::hosts::{Tls, authority};
use super::network_error::{cause, chain, network, no_data};
use super::rate::Rate;
use super::reply::Reply;

/// Time limits for the responses of a server.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// Limit for establishing a connection, including TLS.
    pub connect: Duration,
    /// Limit for the next bytes of a response: the maximum time without progress.
    pub read: Duration,
    /// Limit for a whole exchange with a token server, and for the whole body of a manifest or a
    /// configuration.
    pub exchange: Duration,
}

impl Default for Timeouts {
    /// 15 s to connect, 60 s without progress, 60 s for a token, a manifest or a configuration.
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(15),
            read: Duration::from_secs(60),
            exchange: Duration::from_secs(60),
        }
    }
}

/// Scheme, host and port. Credentials are bound to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) scheme: String,
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl Origin {
    pub(crate) fn of(url: &Url) -> Self {
        Origin {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default(),
        }
    }
}

/// A request that is ready to send.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) url: Url,
    pub(crate) tls: &'a Tls,
    pub(crate) within: Zone,
    pub(crate) headers: HeaderMap,
    /// Body of a form. If present, the request is a POST.
    pub(crate) form: Option<String>,
    /// Counter to which the wait for a free connection is added, in microseconds.
    pub(crate) idle: Option<&'a AtomicU64>,
}

/// Properties of requests that share a client and its connection pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    tls: Tls,
    within: Zone,
    /// `true` for plain http.
    plain: bool,
    /// `true` if the host is this machine, which is never reached through a proxy.
    direct: bool,
    /// Port, if a rule applies to exactly this port.
    port: Option<u16>,
    /// `true` if the target is a proxy's own host, which then has no exemption from the rules.
    targets_proxy: bool,
}

/// Maximum number of counted pairs of host and status.
const MAX_COUNTED_RESPONSES: usize = 256;

/// Connections and limits of one job.
#[derive(Debug)]
pub(crate) struct Transport {
    timeouts: Timeouts,
    rate: Option<Arc<Rate>>,
    rules: Arc<Rules>,
    per_host: usize,
    proxies: Arc<HashSet<String>>,
    files: Files,
    clients: Mutex<HashMap<Kind, Client>>,
    limits: Mutex<HashMap<Origin, Arc<HostLimit>>>,
    answers: Mutex<BTreeMap<(String, u16), u64>>,
}

impl Transport {
    pub(crate) fn new(timeouts: Timeouts, per_host: usize, limit_rate: Option<u64>, rules: Rules) -> Self {
        // Fails only if the process already has a provider, which works as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Transport {
            timeouts,
            rate: limit_rate.map(|rate| Arc::new(Rate::new(rate))),
            rules: Arc::new(rules),
            per_host,
            proxies: Arc::new(address::proxy_hosts(|name| std::env::var(name).ok())),
            files: Files::default(),
            clients: Mutex::default(),
            limits: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    /// Returns the number of responses so far by host and status.
    pub(crate) fn answers(&self) -> BTreeMap<(String, u16), u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reports whether `host` has answered a request.
    pub(crate) fn has_answered(&self, host: &str) -> bool {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.keys().any(|(other, _)| other == host)
    }

    fn answered(&self, host: String, status: StatusCode) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        // A registry chooses its redirect targets, and could choose a new host each time.
        if answers.len() < MAX_COUNTED_RESPONSES || answers.contains_key(&(host.clone(), status.as_u16())) {
            *answers.entry((host, status.as_u16())).or_default() += 1;
        }
    }

    /// Reads the files that `tls` names, as far as possible.
    pub(crate) fn read_ahead(&self, tls: &Tls) {
        let client = tls.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        for file in tls.ca.iter().chain(client) {
            let _ = self.files.read(file);
        }
    }

    /// Sends a request and waits for the head of the response, whatever its status.
    pub(crate) async fn send(&self, outgoing: Outgoing<'_>) -> Result<Reply, Fault> {
        address::check_literal(&outgoing.url, &self.rules, outgoing.within)?;
        let client = self.client(self.kind(&outgoing.url, outgoing.tls, outgoing.within));
        let client = client.map_err(|e| Fault::Invalid(e.to_string()))?;
        let host = authority(&outgoing.url);
        let waiting = Instant::now();
        let limit = self.limit(&outgoing.url);
        let permit = limit.acquire().await;
        let permit = permit.ok_or_else(|| Fault::transient("the client is shutting down"))?;
        if let Some(idle) = outgoing.idle {
            let micros = u64::try_from(waiting.elapsed().as_micros()).unwrap_or(u64::MAX);
            idle.fetch_add(micros, Ordering::Relaxed);
        }
        let mut request = match outgoing.form {
            Some(form) => client.post(outgoing.url).body(form),
            None => client.get(outgoing.url),
        };
        request =
            request.headers(outgoing.headers).header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let patience = self.timeouts.connect + self.timeouts.read;
        let response = tokio::time::timeout(patience, request.send()).await;
        let silent = |_| Fault::Unreachable(no_data(patience));
        let response = response.map_err(silent)?.map_err(network)?;
        self.answered(host, response.status());
        match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                limit.overloaded(Instant::now())
            }
            _ => limit.answered(),
        }
        Ok(Reply::new(response, permit, self.timeouts.read, self.rate.clone()))
    }

    /// Connects to `url`, which has the scheme https. Reports whether the server supports TLS. `None` if the
    /// attempt does not show it.
    pub(crate) async fn supports_tls(&self, url: &Url, tls: &Tls) -> Option<bool> {
        // The request reports why the address is refused.
        address::check_literal(url, &self.rules, Zone::Loopback).ok()?;
        let client = self.client(self.kind(url, tls, Zone::Loopback));
        let Ok(client) = client else { return Some(true) };
        let sent = tokio::time::timeout(self.timeouts.connect, client.get(url.clone()).send()).await;
        match sent.ok()? {
            Ok(_) => Some(true),
            Err(error) => match cause(&error) {
                Some(rustls::Error::InvalidMessage(_)) => Some(false),
                Some(_) => Some(true),
                None => (!error.is_connect()).then_some(true),
            },
        }
    }

    fn kind(&self, url: &Url, tls: &Tls, within: Zone) -> Kind {
        let name = url.host_str().unwrap_or_default();
        Kind {
            tls: tls.clone(),
            within,
            plain: url.scheme() == "http",
            direct: address::is_loopback_name(name),
            port: url.port_or_known_default().and_then(|port| self.rules.own_port(port)),
            targets_proxy: self.proxies.contains(name),
        }
    }

    fn limit(&self, url: &Url) -> Arc<HostLimit> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = limits.entry(Origin::of(url));
        Arc::clone(limit.or_insert_with(|| Arc::new(HostLimit::new(self.per_host))))
    }

    fn client(&self, kind: Kind) -> Result<Client, Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.build(&kind)?;
        clients.insert(kind, client.clone());
        Ok(client)
    }

    fn build(&self, kind: &Kind) -> Result<Client, Error> {
        let Kind { tls, within, plain, direct, port, targets_proxy } = kind;
        let resolver = CheckedResolver {
            rules: Arc::clone(&self.rules),
            within: *within,
            port: *port,
            proxies: if *targets_proxy { Arc::default() } else { Arc::clone(&self.proxies) },
            turn: AtomicUsize::new(0),
        };
        let mut builder = Client::builder()
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            // Each part of a blob has a connection of its own, so that a slow one can be replaced.
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.timeouts.connect)
            .dns_resolver(resolver);
        if *direct {
            builder = builder.no_proxy();
        }
        if *plain {
            // A machine without CA certificates can still reach a registry that needs none.
            builder = builder.tls_certs_only([]);
        } else {
            let mut authorities = Vec::new();
            for file in &tls.ca {
                let parsed = Certificate::from_pem_bundle(&self.files.read(file)?);
                authorities.extend(parsed.map_err(|_| malformed(file))?);
            }
            builder = builder.tls_certs_merge(authorities).tls_danger_accept_invalid_certs(tls.skip_verify);
            if let Some((certificate, key)) = &tls.client {
                let mut pem = self.files.read(certificate)?.to_vec();
                if key != certificate {
                    pem.push(b'\n');
                    pem.extend_from_slice(&self.files.read(key)?);
                }
                builder = builder.identity(Identity::from_pem(&pem).map_err(|_| malformed(certificate))?);
            }
        }
        builder
            .build()
            .map_err(|e| Error::Setup(format!("{}; check that CA certificates are installed", chain(&e))))
    }
}

fn malformed(file: &Path) -> Error {
    Error::Setup(format!("{} contains no certificate or no key in PEM format", file.display()))
}
