//! Registry client: hosts and mirrors, authentication, retries, and blobs that resume. Async.
//!
//! ```text
//! Registry::manifest, blob_bytes ─┐
//! BlobStream (blob) ─► Fetch ─────┴─► request::get ─────────────► transport::send
//!   parts in order,     resumes,        authorization (auth,        connections, address check,
//!   as many as the      mirrors, slow   token), redirects           timeouts, rate, limits of
//!   network needs       connections                                 hosts
//!   (width)             (pace)                                      (host_limit)
//! ```
//!
//! No response of a registry is trusted. Bodies are bounded, and bytes are checked against digest and size.
//! Credentials stay with one (scheme, host, port). No response leads a connection further into the network
//! than the registry itself. The client of oci-client does none of this, so this crate sends its requests
//! with reqwest.
//!
//! The usual variables (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`) apply. A proxy resolves names itself, so
//! behind one the address check covers only literal addresses.

#![forbid(unsafe_code)]

pub mod address;
mod auth;
mod basic;
pub mod blob;
mod challenge;
pub mod error;
mod extent;
mod fetch;
mod files;
mod host_limit;
pub mod hosts;
mod min_rate;
mod network_error;
mod observer;
mod pace;
mod rate;
mod redirect;
mod reply;
mod request;
pub mod retry;
mod scheme;
mod source;
mod tags;
mod token;
pub mod transport;
mod warning;
mod width;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::Url;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use self::address::Rules;
pub use self::blob::{BlobStream, Ranges};
pub use self::error::{CredentialsError, Error, FailedMirror, Fault};
pub use self::hosts::Hosts;
pub use self::min_rate::{MinRate, Slow};
pub use self::observer::{NoopObserver, Observer, Replacement, Retry};
pub use self::retry::{Retries, Unreachable};
pub use self::transport::Timeouts;

use self::auth::Session;
use self::error::printable;
use self::hosts::Endpoint;
use self::pace::Peers;
use self::reply::Reply;
use self::request::GetRequest;
use self::retry::Attempts;
use self::scheme::Schemes;
use self::source::{Blob, Location, Source};
use self::transport::{Origin, Transport};
use self::warning::ShownWarnings;
use larder_model::credential::Credential;
use larder_model::digest::{Digest, Hasher};
use larder_model::manifest::Descriptor;
use larder_model::reference::ImageReference;

/// Maximum size of a manifest or an index, in bytes (the limit of containerd and containers/image).
pub const MAX_MANIFEST: usize = larder_model::manifest::MAX_BYTES;

/// Maximum number of foreign locations tried for a layer.
const MAX_FOREIGN: usize = 8;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// Settings of the client.
#[derive(Clone, Debug)]
pub struct Options {
    /// Maximum number of concurrent requests to one host.
    pub connections_per_host: usize,
    /// Limit for all bodies together, in bytes per second. `None` means unlimited.
    pub limit_rate: Option<u64>,
    /// Mirrors, schemes and TLS settings, by registry.
    pub hosts: Hosts,
    /// Time limits for a response of a server.
    pub timeouts: Timeouts,
    /// Number of attempts and the waits between them.
    pub retries: Retries,
    /// Limits for fetching a blob by several ranges.
    pub ranges: Ranges,
    /// Rules for the addresses to which the client may connect.
    pub rules: Rules,
    /// Minimum rate at which a registry must send a layer. `None` means no minimum.
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

/// Source of credentials. The client queries it when a registry requires authentication, and again when
/// credentials stop working.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// Returns the credentials to try, in order, for this registry host and repository. The client tries
    /// anonymous access after them.
    fn lookup<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Credential>, CredentialsError>>;
}

/// A [`Credentials`] without any credential.
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

/// Selects a manifest of a repository.
#[derive(Clone, Copy, Debug)]
pub enum ManifestReference<'a> {
    /// The manifest that a tag points to now.
    Tag(&'a str),
    /// The manifest with this digest.
    Digest(&'a Digest),
}

/// A manifest exactly as the registry sent it.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// Value of Content-Type, without parameters.
    pub media_type: Option<String>,
    /// Digest of the manifest's bytes.
    pub digest: Digest,
    /// Bytes as the registry sent them.
    pub bytes: Bytes,
}

/// A registry client; cheap to clone. Use one per job, because it caches tokens and owns the connections.
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
    warned: ShownWarnings,
    schemes: Schemes,
    /// Mirrors whose failure was reported.
    failed: Mutex<HashSet<String>>,
    /// Permits of [`Ranges::memory`], one per MiB.
    memory: Arc<Semaphore>,
    /// Rates of connections, by host.
    peers: Mutex<HashMap<String, Arc<Peers>>>,
    /// Bytes of blobs from registries, and from mirrors.
    received: [AtomicU64; 2],
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl Registry {
    /// Creates a client.
    ///
    /// # Errors
    /// [`Error::Setup`] if the configuration of a host is invalid.
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
        let inner = Inner {
            options,
            transport,
            credentials,
            observer,
            sessions: Mutex::default(),
            warned: ShownWarnings::default(),
            schemes: Schemes::default(),
            failed: Mutex::default(),
            memory,
            peers: Mutex::default(),
            received: Default::default(),
        };
        Ok(Registry { inner: Arc::new(inner) })
    }

    /// Returns the number of responses so far by host and HTTP status.
    pub fn answers(&self) -> BTreeMap<(String, u16), u64> {
        self.inner.transport.answers()
    }

    /// Returns the bytes of blobs so far: from registries and foreign locations, and from mirrors. Bytes that
    /// were sent again count again.
    pub fn received(&self) -> (u64, u64) {
        let [registries, mirrors] = &self.inner.received;
        (registries.load(Ordering::Relaxed), mirrors.load(Ordering::Relaxed))
    }

    /// Reads the certificates and keys for `registries` now, for a process that cannot read them later. An
    /// unreadable file is reported when it is needed.
    pub fn read_ahead<'a>(&self, registries: impl Iterator<Item = &'a str>) {
        for tls in registries.flat_map(|registry| self.inner.options.hosts.tls(registry)) {
            self.inner.transport.read_ahead(tls);
        }
    }

    /// Fetches a manifest of at most [`MAX_MANIFEST`] bytes. A manifest requested by digest has that digest.
    /// If a tag does not exist, the error names similar tags.
    ///
    /// # Errors
    /// [`Error`] if no host returns the manifest, or its digest is wrong.
    pub async fn manifest(
        &self,
        image: &ImageReference,
        by: ManifestReference<'_>,
    ) -> Result<FetchedManifest, Error> {
        let endpoints = self.inner.endpoints(image, matches!(by, ManifestReference::Tag(_)))?;
        let read = self.manifest_from(image, by, &endpoints).await;
        match (read, by, endpoints.last()) {
            (Err(error), ManifestReference::Tag(tag), Some(upstream)) => {
                Err(self.inner.suggest_tags(error, upstream, image.repository(), tag).await)
            }
            (read, ..) => read,
        }
    }

    /// Checks that the registry itself returns the manifest with this digest for the given credentials.
    ///
    /// The request skips mirrors and omits the headers configured for the registry: those authorize this
    /// host, not the owner of the credentials. The manifest is read and verified in full, so a successful
    /// response proves access.
    ///
    /// # Errors
    /// [`Error`] if the registry denies access or does not return the manifest.
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
        let request = GetRequest {
            repository: image.repository(),
            path: &path,
            accept: Some(MANIFEST_TYPES),
            range: None,
            idle: None,
        };
        let read = async |mut reply: Reply| {
            let bytes = reply.whole(MAX_MANIFEST).await?;
            let announced =
                reply.header("docker-content-digest").and_then(|digest| digest.parse::<Digest>().ok());
            let want = match by {
                ManifestReference::Digest(digest) => Some(digest.clone()),
                ManifestReference::Tag(_) => announced,
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
        self.inner.small(&what, endpoints, request, read).await
    }

    /// Fetches a whole blob of at most `limit` bytes and verifies its size and digest.
    ///
    /// # Errors
    /// [`Error`] if the blob is larger than `limit`, no host returns it, or its size or digest is wrong.
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
            let fault = Fault::Corrupt(format!(
                "the descriptor gives {} bytes, the limit is {limit}",
                descriptor.size
            ));
            return Err(Error::request(what, image.registry(), fault));
        };
        let path = format!("blobs/{}", descriptor.digest);
        let request =
            GetRequest { repository: image.repository(), path: &path, accept: None, range: None, idle: None };
        let read = async |mut reply: Reply| {
            let bytes = reply.whole(size).await?;
            if bytes.len() != size {
                return Err(Fault::Corrupt(format!(
                    "it has {} bytes, the descriptor gives {size}",
                    bytes.len()
                )));
            }
            check_digest(&bytes, &descriptor.digest)?;
            Ok(bytes)
        };
        self.inner.small(&what, &endpoints, request, read).await
    }

    /// Returns a large blob as an ordered stream of exactly `descriptor.size` bytes, which resumes by itself.
    /// Skips the first `skipped` hosts, whose bytes did not have the digest.
    pub fn blob(&self, image: &ImageReference, descriptor: &Descriptor, skipped: usize) -> BlobStream {
        BlobStream::new(self.inner.endpoints(image, false).and_then(|endpoints| {
            let foreign = descriptor.urls.iter().take(MAX_FOREIGN).filter_map(|url| Url::parse(url).ok());
            // Foreign locations serve only content that the registry does not have.
            let foreign = foreign.filter(|_| skipped == 0);
            let sources = endpoints
                .into_iter()
                .skip(skipped)
                .map(|endpoint| Location::Registry(Box::new(endpoint)))
                .chain(foreign.map(Location::Foreign));
            let sources: Vec<Source> = sources.map(|location| Source::new(&self.inner, location)).collect();
            let what = format!("reading blob {} of {}", descriptor.digest, image.name());
            if sources.is_empty() {
                let fault = Fault::NotFound("no other host is configured for it".into());
                return Err(Error::request(what, image.registry(), fault));
            }
            Ok(Blob {
                inner: Arc::clone(&self.inner),
                what,
                repository: image.repository().to_owned(),
                path: format!("blobs/{}", descriptor.digest),
                size: descriptor.size,
                sources,
                // After wrong bytes, one source at a time shows which is wrong.
                spreads: skipped == 0,
                arrived: AtomicU64::new(0),
                ranged: AtomicBool::new(false),
                unranged: AtomicBool::new(false),
            })
        }))
    }
}

impl Inner {
    fn endpoints(&self, image: &ImageReference, tag: bool) -> Result<Vec<Endpoint>, Error> {
        self.options.hosts.endpoints(image.registry(), image.repository(), tag)
    }

    /// Returns the time since `started` if `host` has never answered.
    pub(crate) fn unanswered(&self, host: &str, started: Instant) -> Option<Duration> {
        (!self.transport.has_answered(host)).then(|| started.elapsed())
    }

    /// Returns the rates of the connections to a host.
    pub(crate) fn peers(&self, host: &str) -> Arc<Peers> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(peers.entry(host.to_owned()).or_default())
    }

    /// Reports a failed mirror, once.
    pub(crate) fn report(&self, host: &str, fault: &Fault) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(fault, Fault::NotFound(_)) && failed.insert(host.to_owned()) {
            self.observer.mirror_failed(host, &fault.to_string());
        }
    }

    /// Requests a small document from each endpoint in turn, with retries, and reads it whole. Returns the
    /// upstream's error if all fail.
    async fn small<T>(
        &self,
        what: &str,
        endpoints: &[Endpoint],
        request: GetRequest<'_>,
        read: impl AsyncFn(Reply) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let mut tried = Vec::new();
        for (at, endpoint) in endpoints.iter().enumerate() {
            let is_followed = at + 1 < endpoints.len();
            let (host, started) = (endpoint.host(), Instant::now());
            let mut count = 1;
            let fault = loop {
                let whole = self.options.timeouts.exchange;
                let tried = match request::get(self, endpoint, request).await {
                    Ok(reply) => tokio::time::timeout(whole, read(reply)).await.unwrap_or_else(|_| {
                        let seconds = whole.as_secs_f64();
                        Err(Fault::transient(format!("the response was not complete after {seconds} s")))
                    }),
                    Err(fault) => Err(fault),
                };
                let fault = match tried {
                    Ok(found) => return Ok(found),
                    Err(fault) => fault,
                };
                let attempts = Attempts { count, unanswered: self.unanswered(&host, started), is_followed };
                let Some(wait) = self.options.retries.again(&fault, attempts) else {
                    break fault;
                };
                let (host, what, reason) = (host.clone(), what.to_owned(), fault.reason());
                self.observer.retried(&Retry { host, what, reason, wait });
                tokio::time::sleep(wait).await;
                count += 1;
            };
            if !is_followed {
                return Err(Error::Request { what: what.to_owned(), host, fault, tried });
            }
            self.report(&host, &fault);
            tried.push(FailedMirror { host, fault });
        }
        Err(Error::Setup(format!("no host is configured for {what}")))
    }
}

fn check_digest(bytes: &[u8], want: &Digest) -> Result<Digest, Fault> {
    let found = Hasher::digest_of(want.algorithm(), bytes);
    if found == *want {
        return Ok(found);
    }
    Err(Fault::Corrupt(format!("the content has digest {found}, expected {want}")))
}

#[cfg(test)]
mod tests;
