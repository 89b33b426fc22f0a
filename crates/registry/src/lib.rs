//! Async: hosts and mirrors, authentication, retry, blobs that resume.
//!
//! ```text
//! Registry::manifest, blob_bytes ─┐
//! BlobStream (blob) ─► Fetch ─────┴─► request::get ─────────────► transport::send
//!   several ranges      resumes,        authorization (auth,        connections, address check,
//!   in order            mirrors         token), redirects           time-outs, rate
//! ```
//!
//! Nothing that a registry says is trusted: bodies are bounded, bytes are checked against digest and size, credentials
//! stay with one (scheme, host, port), and no answer leads a connection to where the registry itself is not.
//! The client of oci-client keeps none of that, so requests are made here, on reqwest.
//!
//! The usual variables (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`) hold. A proxy resolves names by itself, so behind one
//! the check of addresses covers only literal ones.

#![forbid(unsafe_code)]

pub mod address;
mod auth;
pub mod blob;
mod challenge;
pub mod error;
mod fetch;
mod files;
pub mod hosts;
mod pace;
mod rate;
mod request;
pub mod retry;
mod token;
pub mod transport;
mod warning;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::Semaphore;

pub use self::address::Rules;
pub use self::blob::{BlobStream, Ranges};
pub use self::error::{CredentialsError, Error, Fault};
pub use self::hosts::Hosts;
pub use self::pace::MinRate;
pub use self::retry::Retries;
pub use self::transport::Timeouts;

use self::auth::Session;
use self::error::printable;
use self::fetch::{Blob, Source};
use self::hosts::Endpoint;
use self::request::Ask;
use self::transport::{Origin, Reply, Transport};
use self::warning::Warned;
use larder_model::credential::Credential;
use larder_model::digest::{Digest, Hasher};
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;

/// Manifests and indexes larger than this are refused, bytes (as containerd and containers/image do).
pub const MAX_MANIFEST: usize = 4 << 20;

/// Foreign locations of a layer that are tried.
const MAX_FOREIGN: usize = 8;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// How the client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Requests to one host at once.
    pub connections_per_host: usize,
    /// Bytes per second of all bodies together; unlimited without it.
    pub limit_rate: Option<u64>,
    /// Mirrors, schemes, TLS.
    pub hosts: Hosts,
    /// How long to wait for a server.
    pub timeouts: Timeouts,
    /// How often to try again.
    pub retries: Retries,
    /// When a blob is fetched by several ranges.
    pub ranges: Ranges,
    /// Which addresses may be connected to.
    pub rules: Rules,
    /// The least that a registry must send of a layer. `None` waits for ever.
    pub min_rate: Option<MinRate>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            connections_per_host: 8,
            limit_rate: None,
            hosts: Hosts::default(),
            timeouts: Timeouts::default(),
            retries: Retries::default(),
            ranges: Ranges::default(),
            rules: Rules::default(),
            min_rate: None,
        }
    }
}

/// Where credentials come from. Asked when a registry demands some, and again when they stop to work.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// Credentials to try, in order, for this registry host and repository; anonymous access is tried after them.
    fn lookup<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>>;
}

/// No credentials at all.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn lookup<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// Is told what the client lives through.
pub trait Observer: Send + Sync {
    /// A request failed and is tried again after a wait.
    fn retried(&self, retry: &Retry);

    /// A host asks that its words be shown to the user; each of them once. They are escaped and cut.
    fn warned(&self, _host: &str, _words: &str) {}
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn retried(&self, _: &Retry) {}
}

/// A request that is tried again. Holds no secret and no query of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Host asked.
    pub host: String,
    /// What was being done.
    pub what: String,
    /// What failed.
    pub reason: String,
    /// How long the client waits.
    pub wait: Duration,
}

/// Which manifest.
#[derive(Clone, Copy, Debug)]
pub enum ManifestReference<'a> {
    /// The one a tag points to now.
    Tag(&'a str),
    /// The one with this digest.
    Digest(&'a Digest),
}

/// A manifest as the registry gave it.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// Content-Type without parameters.
    pub media_type: Option<String>,
    /// Digest of the bytes.
    pub digest: Digest,
    /// The bytes.
    pub bytes: Bytes,
}

/// A client of registries; cheap to clone. One per job: it remembers tokens and owns the connections.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    options: Options,
    transport: Transport,
    credentials: Arc<dyn Credentials>,
    observer: Arc<dyn Observer>,
    sessions: Mutex<HashMap<(Origin, String), Arc<Session>>>,
    warned: Warned,
    /// Shares of [`Ranges::memory`], one a part.
    memory: Arc<Semaphore>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl Registry {
    /// A client. Fails only where the configuration of hosts can be seen to be wrong.
    pub fn new(
        options: Options,
        credentials: Arc<dyn Credentials>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        for registry in options.hosts.registries.keys() {
            options.hosts.endpoints(registry, "", true)?;
        }
        let transport = Transport::new(
            options.timeouts.clone(),
            options.connections_per_host,
            options.limit_rate,
            options.rules.clone(),
        );
        let memory = options.ranges.budget();
        let (sessions, warned) = (Mutex::default(), Warned::default());
        let inner = Inner { options, transport, credentials, observer, sessions, warned, memory };
        Ok(Registry { inner: Arc::new(inner) })
    }

    /// How often each host answered with each HTTP status so far.
    pub fn answers(&self) -> BTreeMap<(String, u16), u64> {
        self.inner.transport.answers()
    }

    /// Reads the certificates and keys for `registries` now, for a process that cannot later. What cannot be read is told
    /// when it is needed.
    pub fn read_ahead<'a>(&self, registries: impl Iterator<Item = &'a str>) {
        for tls in registries.flat_map(|registry| self.inner.options.hosts.tls(registry)) {
            self.inner.transport.read_ahead(tls);
        }
    }

    /// Gets a manifest of at most [`MAX_MANIFEST`] bytes; got by digest, it has that digest.
    pub async fn manifest(
        &self,
        image: &ImageReference,
        by: ManifestReference<'_>,
    ) -> Result<FetchedManifest, Error> {
        let tag = matches!(by, ManifestReference::Tag(_));
        self.manifest_from(image, by, &self.inner.endpoints(image, tag)?).await
    }

    /// Whether the registry itself gives the manifest with this digest to whom the credentials belong.
    ///
    /// Mirrors are not asked, nor are headers sent that the configuration holds for the registry: what those authorize is this
    /// host, not who gave the credentials. The bytes are read and checked, not only asked for: who answers has them.
    pub async fn may_read(&self, image: &ImageReference, digest: &Digest) -> Result<(), Error> {
        let mut endpoints = self.inner.endpoints(image, false)?;
        let mut upstream = endpoints.split_off(endpoints.len().saturating_sub(1));
        for endpoint in &mut upstream {
            endpoint.headers.clear();
        }
        self.manifest_from(image, ManifestReference::Digest(digest), &upstream).await.map(drop)
    }

    async fn manifest_from(
        &self,
        image: &ImageReference,
        by: ManifestReference<'_>,
        endpoints: &[Endpoint],
    ) -> Result<FetchedManifest, Error> {
        let (path, what) = match by {
            ManifestReference::Tag(tag) => (format!("manifests/{tag}"), format!("{}:{tag}", image.name())),
            ManifestReference::Digest(digest) => {
                (format!("manifests/{digest}"), format!("{}@{digest}", image.name()))
            }
        };
        let what = format!("reading manifest {what}");
        let ask = Ask {
            repository: image.repository(),
            path: &path,
            accept: Some(MANIFEST_TYPES),
            range: None,
            idle: None,
        };
        let read = async |mut reply: Reply| {
            let bytes = reply.whole(MAX_MANIFEST).await?;
            let said = reply.header("docker-content-digest").and_then(|said| said.parse::<Digest>().ok());
            let want = match by {
                ManifestReference::Digest(digest) => Some(digest.clone()),
                ManifestReference::Tag(_) => said,
            };
            let digest = match want {
                Some(want) => check_digest(&bytes, &want)?,
                None => Digest::sha256(&bytes),
            };
            let media_type =
                reply.header(CONTENT_TYPE.as_str()).map(|value| value.split(';').next().unwrap_or_default());
            let media_type = media_type.map(|value| printable(value.trim()));
            Ok(FetchedManifest { media_type, digest, bytes })
        };
        self.inner.small(&what, endpoints, ask, read).await
    }

    /// Gets a blob of at most `limit` bytes whole, its size and digest checked.
    pub async fn blob_bytes(
        &self,
        image: &ImageReference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, Error> {
        let what = format!("reading blob {} of {}", descriptor.digest, image.name());
        let endpoints = self.inner.endpoints(image, false)?;
        let size = usize::try_from(descriptor.size).ok().filter(|_| descriptor.size <= limit);
        let Some(size) = size else {
            let fault =
                Fault::Corrupt(format!("its descriptor says {} bytes, {limit} are allowed", descriptor.size));
            return Err(Error::Request { what, host: image.registry().to_owned(), fault });
        };
        let path = format!("blobs/{}", descriptor.digest);
        let ask = Ask { repository: image.repository(), path: &path, accept: None, range: None, idle: None };
        let read = async |mut reply: Reply| {
            let bytes = reply.whole(size).await?;
            if bytes.len() != size {
                return Err(Fault::Corrupt(format!(
                    "it has {} bytes, its descriptor says {size}",
                    bytes.len()
                )));
            }
            check_digest(&bytes, &descriptor.digest)?;
            Ok(bytes)
        };
        self.inner.small(&what, &endpoints, ask, read).await
    }

    /// A large blob as an ordered stream of exactly `descriptor.size` bytes, which resumes itself. The first `skipped` of the
    /// hosts that can have it are not asked: their bytes did not have its digest.
    pub fn blob(&self, image: &ImageReference, descriptor: &Descriptor, skipped: usize) -> BlobStream {
        BlobStream::new(self.inner.endpoints(image, false).and_then(|endpoints| {
            let foreign = descriptor.urls.iter().take(MAX_FOREIGN).filter_map(|url| Url::parse(url).ok());
            // Those are for what the registry does not have.
            let foreign = foreign.filter(|_| skipped == 0);
            let sources = endpoints
                .into_iter()
                .skip(skipped)
                .map(|endpoint| Source::Registry(Box::new(endpoint)))
                .chain(foreign.map(Source::Foreign));
            let sources: Vec<Source> = sources.collect();
            let what = format!("reading blob {} of {}", descriptor.digest, image.name());
            if sources.is_empty() {
                let fault = Fault::NotFound("no other host is configured for it".into());
                return Err(Error::Request { what, host: image.registry().to_owned(), fault });
            }
            Ok(Blob {
                inner: Arc::clone(&self.inner),
                what,
                repository: image.repository().to_owned(),
                path: format!("blobs/{}", descriptor.digest),
                size: descriptor.size,
                sources,
            })
        }))
    }
}

impl Inner {
    fn endpoints(&self, image: &ImageReference, tag: bool) -> Result<Vec<Endpoint>, Error> {
        self.options.hosts.endpoints(image.registry(), image.repository(), tag)
    }

    /// Asks each endpoint in turn, with retries, for something small that is read whole; the upstream's fault is told.
    async fn small<T>(
        &self,
        what: &str,
        endpoints: &[Endpoint],
        ask: Ask<'_>,
        read: impl AsyncFn(Reply) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let mut last = Error::Setup(format!("no host is configured for {what}"));
        for (at, endpoint) in endpoints.iter().enumerate() {
            let is_followed = at + 1 < endpoints.len();
            let mut attempt = 1;
            let fault = loop {
                let whole = self.options.timeouts.exchange;
                let tried = match request::get(self, endpoint, ask).await {
                    Ok(reply) => tokio::time::timeout(whole, read(reply)).await.unwrap_or_else(|_| {
                        let seconds = whole.as_secs_f64();
                        Err(Fault::transient(format!("the answer was not complete after {seconds} s")))
                    }),
                    Err(fault) => Err(fault),
                };
                let fault = match tried {
                    Ok(found) => return Ok(found),
                    Err(fault) => fault,
                };
                let Some(wait) = self.options.retries.again(&fault, attempt, is_followed) else {
                    break fault;
                };
                let (host, what, reason) = (endpoint.host(), what.to_owned(), fault.to_string());
                self.observer.retried(&Retry { host, what, reason, wait });
                tokio::time::sleep(wait).await;
                attempt += 1;
            };
            last = Error::Request { what: what.to_owned(), host: endpoint.host(), fault };
        }
        Err(last)
    }
}

fn check_digest(bytes: &[u8], want: &Digest) -> Result<Digest, Fault> {
    let found = Hasher::digest_of(want.algorithm(), bytes);
    if found == *want {
        return Ok(found);
    }
    Err(Fault::Corrupt(format!("its bytes have digest {found}, it should be {want}")))
}

#[cfg(test)]
mod tests;
