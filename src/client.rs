//! Client for the daemon's HTTP API, over its Unix socket or TCP.

pub mod address;
mod answer;
pub mod credentials;
pub mod error;
pub mod events;
pub mod upload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Method, Response, Url};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use address::Address;
pub use answer::Answer;
use credentials::Credentials;
use error::{Error, Refusal};
use events::Events;

use larder_model::causes::causes;
use larder_model::class::Class;
use larder_model::digest::hex;
use larder_model::signature;

/// Maximum size of an answer, bytes.
const MAX_ANSWER: usize = 32 << 20;
/// Timeout for establishing a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Timeout for a complete answer. A plan must wait for registries.
const ANSWER: Duration = Duration::from_secs(90);
/// Maximum silence on an event stream before it counts as dead. The daemon sends a keep-alive every 15
/// seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// A client of one daemon.
#[derive(Debug)]
pub struct Client {
    address: Address,
    credentials: Credentials,
    http: reqwest::Client,
    ca: Option<PathBuf>,
}

/// A request to the daemon.
#[derive(Debug)]
pub struct Request<'a> {
    /// HTTP method of the request.
    pub method: Method,
    /// Path, consisting of characters that need no encoding.
    pub path: &'a str,
    /// Parameters of the query.
    pub query: &'a [(&'a str, &'a str)],
    /// JSON body, for a POST.
    pub body: Option<String>,
    /// Value of the `Idempotency-Key` header.
    pub key: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// Creates a request without parameters and body.
    pub fn new(method: Method, path: &'a str) -> Self {
        Request { method, path, query: &[], body: None, key: None }
    }

    /// Adds a JSON body.
    ///
    /// # Errors
    /// Returns [`Error::Body`] if the body has no JSON form.
    pub fn with_body(self, body: &impl Serialize) -> Result<Self, Error> {
        let text = serde_json::to_string(body).map_err(|e| {
            let message = format!("writing the body of the request: {e}");
            Error::Body { class: Class::Internal, message }
        })?;
        Ok(Request { body: Some(text), ..self })
    }
}

impl Client {
    /// Creates a client of the daemon at `address`. `ca` is a PEM file with additional certificate
    /// authorities.
    ///
    /// # Errors
    /// Returns [`Error::Setup`] if the file cannot be used.
    pub fn new(address: Address, credentials: Credentials, ca: Option<&Path>) -> Result<Self, Error> {
        let http = http(&address, ca, Some(SILENCE))?;
        Ok(Client { address, credentials, http, ca: ca.map(Path::to_owned) })
    }

    /// Sends a request and returns its answer.
    ///
    /// # Errors
    /// Returns [`Error`], also for every unsuccessful status.
    pub async fn call(&self, request: Request<'_>) -> Result<Answer, Error> {
        let answer = tokio::time::timeout(ANSWER, async {
            let response = self.send(request, None).await?;
            self.body(response).await
        });
        let body = answer.await.map_err(|_| self.unreachable("no answer in time".to_owned()))??;
        self.parse(&body)
    }

    /// Follows an image cache, starting after the event with number `after`.
    ///
    /// # Errors
    /// Returns [`Error`], also for every unsuccessful status.
    pub async fn follow(&self, id: &str, after: u64) -> Result<Events, Error> {
        let path = format!("/larder/v1/caches/{id}/events");
        let response = self.send(Request::new(Method::GET, &path), Some(after)).await?;
        Ok(Events::new(response))
    }

    async fn send(&self, request: Request<'_>, after: Option<u64>) -> Result<Response, Error> {
        let hash = Sha256::digest(request.body.as_deref().unwrap_or_default()).into();
        let mut builder = self.begin(&self.http, &request, hash);
        if let Some(after) = after.filter(|after| *after > 0) {
            builder = builder.header("Last-Event-ID", after);
        }
        if let Some(body) = request.body {
            builder = builder.header(CONTENT_TYPE, "application/json").body(body);
        }
        self.answer(builder).await
    }

    /// Sends a body of any size, without a time limit.
    async fn send_body(
        &self,
        request: Request<'_>,
        body: reqwest::Body,
        length: Option<u64>,
        sha256: Option<[u8; 32]>,
    ) -> Result<Response, Error> {
        let http = http(&self.address, self.ca.as_deref(), None)?;
        let mut builder = self.begin(&http, &request, sha256.unwrap_or_default());
        builder = builder.header(CONTENT_TYPE, "application/octet-stream").body(body);
        if let Some(length) = length {
            builder = builder.header(CONTENT_LENGTH, length);
        }
        if let Some(sha256) = sha256 {
            builder = builder.header("X-Sdk-Content-Sha256", hex(&sha256));
        }
        self.answer(builder).await
    }

    /// Creates a request without its body, whose SHA-256 is `hash`.
    fn begin(
        &self,
        http: &reqwest::Client,
        request: &Request<'_>,
        hash: [u8; 32],
    ) -> reqwest::RequestBuilder {
        let mut url = self.address.base();
        url.set_path(request.path);
        if !request.query.is_empty() {
            // Not encoded like a form, which writes a space as a plus sign. The daemon reads that as a plus
            // sign, and the signature covers it.
            url.set_query(Some(&signature::query(request.query.iter().copied())));
        }
        let mut builder = http.request(request.method.clone(), url.clone());
        for (name, value) in self.credentials.headers(request, &url, hash, Utc::now()) {
            builder = builder.header(name, value);
        }
        if let Some(key) = request.key {
            builder = builder.header("Idempotency-Key", key);
        }
        builder
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|e| self.not_sent(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status().as_u16();
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (request_id, retry_after) = (header("x-request-id"), header("retry-after"));
        let body = self.body(response).await.unwrap_or_default();
        Err(Error::Refused(Refusal::of(status, &body, request_id, retry_after)))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.unreachable(causes(&e)))? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_ANSWER {
                return Err(self.malformed(format!("the answer is longer than {MAX_ANSWER} bytes")));
            }
        }
        Ok(body)
    }

    fn parse(&self, body: &[u8]) -> Result<Answer, Error> {
        let json = serde_json::from_slice(body).map_err(|e| self.malformed(e.to_string()))?;
        Ok(Answer::new(self.address.to_string(), json))
    }

    fn not_sent(&self, error: &reqwest::Error) -> Error {
        match &self.address {
            Address::Unix(path) if is_denied(error) => Error::NotAdmitted { socket: path.clone() },
            _ => self.unreachable(causes(error)),
        }
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { address: self.address.to_string(), reason }
    }

    fn malformed(&self, reason: String) -> Error {
        Error::Malformed { address: self.address.to_string(), reason }
    }
}

/// Creates the HTTP client. `silence` is the read timeout; `None` while a body of any size is sent.
fn http(address: &Address, ca: Option<&Path>, silence: Option<Duration>) -> Result<reqwest::Client, Error> {
    // Fails only if the process already has a provider, which works as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let setup = |reason: String| Error::Setup { reason };
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT);
    if let Some(silence) = silence {
        builder = builder.read_timeout(silence);
    }
    builder = match address {
        Address::Unix(path) => builder.no_proxy().tls_certs_only([]).unix_socket(path.clone()),
        // A daemon without TLS is on loopback, and no proxy must see its credentials.
        Address::Http(url) if url.scheme() == "http" => builder.no_proxy().tls_certs_only([]),
        Address::Http(_) => builder,
    };
    if let Some(path) = ca {
        let pem = std::fs::read(path).map_err(|e| setup(format!("reading {}: {e}", path.display())))?;
        let parsed = reqwest::Certificate::from_pem_bundle(&pem);
        let authorities =
            parsed.map_err(|_| setup(format!("{} contains no PEM certificate", path.display())))?;
        builder = builder.tls_certs_merge(authorities);
    }
    builder.build().map_err(|e| setup(e.to_string()))
}

/// Returns the `Host` of a URL. The port is included only if it is not the default of the scheme.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Returns `true` if the kernel denied access.
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
    })
}
