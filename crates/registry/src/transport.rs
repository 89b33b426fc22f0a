//! One exchange on the wire: connections, timeouts, bounded bodies. Does not handle tokens, redirects or
//! retries.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_distribution::errors::OciEnvelope;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, Identity, StatusCode, Url};
use tokio::time::Instant;

use super::address::{self, AddressRefused, CheckedResolver, Rules, UnknownHost, Zone};
use super::error::{Error, Fault, printable};
use super::files::Files;
use super::host_limit::{HostLimit, HostPermit};
use super::hosts::{Tls, authority};
use super::rate::Rate;
use larder_model::causes::causes;

/// Maximum size of an error body that is read, in bytes. A longer body costs the connection.
pub(crate) const MAX_ERROR_BODY: usize = 1 << 20;

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

/// The codings of IANA's "HTTP Content Coding Registry", except `identity`. Object stores send other values
/// with blobs (`aws-chunked`, `none`, `binary`). Those come from the upload and change no byte.
const CODINGS: [&str; 12] = [
    "aes128gcm",
    "br",
    "compress",
    "dcb",
    "dcz",
    "deflate",
    "exi",
    "gzip",
    "pack200-gzip",
    "x-compress",
    "x-gzip",
    "zstd",
];

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
        Ok(Reply {
            response,
            read: self.timeouts.read,
            rate: self.rate.clone(),
            waited: Duration::ZERO,
            silent: Duration::ZERO,
            _permit: permit,
        })
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

/// Head of a response, with access to its body. Holds a permit of the host while it exists.
#[derive(Debug)]
pub(crate) struct Reply {
    response: reqwest::Response,
    read: Duration,
    rate: Option<Arc<Rate>>,
    /// Time spent waiting for the body.
    waited: Duration,
    /// Time since the last bytes of the body.
    silent: Duration,
    _permit: HostPermit,
}

/// The next part of a body.
#[derive(Debug)]
pub(crate) enum Arrival {
    Bytes(Bytes),
    End,
    /// No bytes within the given time.
    Nothing,
}

impl Reply {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns a header as text, if it is present and printable.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Returns the zone of the remote address, which is the proxy's if there is one.
    pub(crate) fn zone(&self) -> Zone {
        self.response.remote_addr().map_or(Zone::Public, |address| Zone::of(address.ip()))
    }

    /// Returns the length that the server announced, in bytes.
    pub(crate) fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// Returns the value of Content-Encoding if it names a coding that changes the bytes of the body.
    pub(crate) fn encoding(&self) -> Option<String> {
        let value = String::from_utf8_lossy(self.headers().get(CONTENT_ENCODING)?.as_bytes()).into_owned();
        let mut codings = value.split(',').map(str::trim);
        let is_coded = codings.any(|coding| CODINGS.iter().any(|known| coding.eq_ignore_ascii_case(known)));
        is_coded.then(|| printable(&value))
    }

    /// Returns the next bytes of the body, or `None` at its end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            match self.chunk_within(Duration::MAX).await? {
                Arrival::Bytes(chunk) => return Ok(Some(chunk)),
                Arrival::End => return Ok(None),
                Arrival::Nothing => {}
            }
        }
    }

    /// Returns what arrives within `patience`.
    pub(crate) async fn chunk_within(&mut self, patience: Duration) -> Result<Arrival, Fault> {
        let limit = patience.min(self.read.saturating_sub(self.silent));
        let started = Instant::now();
        let chunk = tokio::time::timeout(limit, self.response.chunk()).await;
        let waited = started.elapsed();
        self.waited += waited;
        let Ok(chunk) = chunk else {
            self.silent += waited;
            return match self.silent < self.read {
                true => Ok(Arrival::Nothing),
                false => Err(Fault::transient(no_data(self.read))),
            };
        };
        self.silent = Duration::ZERO;
        let Some(chunk) = chunk.map_err(network)? else { return Ok(Arrival::End) };
        if let Some(rate) = &self.rate {
            rate.take(chunk.len()).await;
        }
        Ok(Arrival::Bytes(chunk))
    }

    /// Returns the time spent waiting for the body since the last call, and resets it.
    pub(crate) fn take_waited(&mut self) -> Duration {
        std::mem::take(&mut self.waited)
    }

    /// Returns the whole body, which must not exceed `limit` bytes.
    pub(crate) async fn whole(&mut self, limit: usize) -> Result<Bytes, Fault> {
        let too_large = || Fault::Corrupt(format!("the response is larger than the limit of {limit} bytes"));
        if self.length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Returns the status and the start of the body, for a message. Reading the body keeps the connection
    /// usable.
    pub(crate) async fn error_text(mut self) -> String {
        let status = self.status();
        let body = self.whole(MAX_ERROR_BODY).await.unwrap_or_default();
        let text = documented(&body).unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        let text = printable(text.trim());
        // Many registries repeat the status as a code: UNAUTHORIZED.
        let repeats = status.canonical_reason().is_some_and(|reason| reason.eq_ignore_ascii_case(&text));
        if text.is_empty() || repeats { format!("{status}") } else { format!("{status}: {text}") }
    }
}

/// Returns the codes of an error document (OCI distribution spec, "Error codes").
fn documented(body: &[u8]) -> Option<String> {
    let document: OciEnvelope = serde_json::from_slice(body).ok()?;
    let errors = document.errors.iter().map(|error| {
        let code = serde_json::to_value(&error.code).ok();
        let code = code.as_ref().and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        // The message repeats the code in words, except for a limit.
        match code.as_str() {
            "" => error.message.clone(),
            "TOOMANYREQUESTS" if !error.message.is_empty() => format!("{code}: {}", error.message),
            _ => code,
        }
    });
    let errors: Vec<String> = errors.collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}

fn no_data(patience: Duration) -> String {
    format!("no data received for {} s", patience.as_secs_f64())
}

/// Converts an error of the HTTP library. Omits its URL, which might be signed.
fn network(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    if let Some(refused) = cause::<AddressRefused>(&error) {
        return Fault::from(refused);
    }
    if let Some(UnknownHost(host)) = cause(&error) {
        return Fault::UnknownHost(host.clone());
    }
    if let Some(rustls::Error::InvalidCertificate(reason)) = cause(&error) {
        return Fault::Untrusted(match reason {
            rustls::CertificateError::UnknownIssuer => "unknown issuer".to_owned(),
            other => other.to_string(),
        });
    }
    if let Some(rustls::Error::InvalidMessage(_)) = cause(&error) {
        return Fault::NoTls;
    }
    if error.is_builder() {
        return Fault::Invalid(chain(&error));
    }
    if error.is_connect() {
        return Fault::Unreachable(chain(&error));
    }
    Fault::transient(chain(&error))
}

/// Finds the cause of type `T` in the chain of causes. [`std::error::Error::source`] skips the wrapped error
/// itself, so it is examined separately.
fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    match wrapped {
        Some(wrapped) => cause(wrapped),
        None => error.source().and_then(cause),
    }
}

fn chain(error: &reqwest::Error) -> String {
    printable(&causes(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_documents_are_reduced_to_codes() {
        let one =
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"2"}}]}"#;
        assert_eq!(documented(one).as_deref(), Some("MANIFEST_UNKNOWN"));
        let two = br#"{"errors":[{"code":"DENIED"},{"code":"UNAUTHORIZED","message":"no"}]}"#;
        assert_eq!(documented(two).as_deref(), Some("DENIED; UNAUTHORIZED"));
        let limit = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"100 pulls"}]}"#;
        assert_eq!(documented(limit).as_deref(), Some("TOOMANYREQUESTS: 100 pulls"));
        let own = br#"{"errors":[{"code":"OWN_CODE"}]}"#;
        assert_eq!(documented(own).as_deref(), Some("OWN_CODE"));
        for other in [&b"{\"errors\":[]}"[..], b"<html>"] {
            assert_eq!(documented(other), None);
        }
    }
}
