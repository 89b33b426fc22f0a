//! All metrics of the daemon: names, units, labels. `docs/metrics.md` says the same to operators, and a test compares.
//!
//! Cardinality is bounded by the code: no label holds what a tenant chose but registry hosts, of which [`MAX_HOSTS`] are told
//! apart.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use reqwest::StatusCode;

use larder_model::image_cache::Status;

/// Most registry hosts that are told apart; the rest are `other`.
pub const MAX_HOSTS: usize = 64;

/// The metrics of one daemon. Clones are handles to the same.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    builds: Family<ResultLabel, Counter>,
    build_duration: Histogram,
    stage_duration: Family<StageLabel, Histogram>,
    fetched: Counter,
    written: Counter,
    layers: Family<OriginLabel, Counter>,
    queue: Gauge,
    running: Gauge,
    caches: Family<StatusLabel, Gauge>,
    cache_bytes: Gauge,
    reserved: Gauge,
    capacity: Gauge,
    registry_requests: Family<RequestLabels, Counter>,
    registry_retries: Family<HostLabel, Counter>,
    api_requests: Family<ApiLabels, Counter>,
    api_duration: Histogram,
    authentication_failures: Counter,
    expiry_held: Gauge,
    node_caches: Family<NodeCacheLabel, Gauge>,
    node_attach_duration: Histogram,
    node_failures: Counter,
    hosts: Mutex<HashSet<String>>,
}

/// How an attempt at a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BuildResult {
    /// A volume was sealed.
    Sealed,
    /// It failed for good.
    Failed,
    /// It failed and is tried again.
    Retried,
    /// It was stopped: cancelled, deleted, or the daemon ended.
    Stopped,
}

/// A stage of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// From the start of the builder to the plan.
    Plan,
    /// From the plan to the last committed layer.
    Layers,
    /// From there to the seal.
    Seal,
}

/// Where a layer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerOrigin {
    /// Its registry.
    Fetched,
    /// An earlier attempt.
    Present,
    /// Another volume of the tenant.
    Reused,
}

/// What an image cache is on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeCache {
    /// Containers can use it.
    Attached,
    /// It is wanted and not there yet.
    Waiting,
    /// It is not wanted and not gone yet.
    Leaving,
}

impl NodeCache {
    const ALL: [NodeCache; 3] = [NodeCache::Attached, NodeCache::Waiting, NodeCache::Leaving];
}

macro_rules! label_values {
    ($type:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                match self {
                    $($type::$variant => $text,)+
                }
                .encode(encoder)
            }
        }
    };
}

label_values!(BuildResult { Sealed => "sealed", Failed => "failed", Retried => "retried", Stopped => "stopped" });
label_values!(Stage { Plan => "plan", Layers => "layers", Seal => "seal" });
label_values!(LayerOrigin { Fetched => "fetched", Present => "present", Reused => "reused" });
label_values!(NodeCache { Attached => "attached", Waiting => "waiting", Leaving => "leaving" });

/// The status of an image cache as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct StatusValue(Status);

impl EncodeLabelValue for StatusValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self.0 {
            Status::Creating => "creating",
            Status::Available => "available",
            Status::Failed => "failed",
            Status::Unavailable => "unavailable",
            Status::Deleting => "deleting",
        }
        .encode(encoder)
    }
}

/// Status of a registry's answer: one that is registered (RFC 9110, 15), or `other`. Registries make up their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Code(Option<StatusCode>);

impl Code {
    fn of(code: u16) -> Self {
        Code(StatusCode::from_u16(code).ok().filter(|code| code.canonical_reason().is_some()))
    }
}

impl EncodeLabelValue for Code {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_ref().map_or("other", StatusCode::as_str).encode(encoder)
    }
}

macro_rules! labels {
    ($name:ident { $($label:ident: $type:ty),+ }) => {
        #[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
        struct $name {
            $($label: $type),+
        }
    };
}

labels!(ResultLabel { result: BuildResult });
labels!(StageLabel { stage: Stage });
labels!(OriginLabel { origin: LayerOrigin });
labels!(StatusLabel { status: StatusValue });
labels!(NodeCacheLabel { state: NodeCache });
labels!(HostLabel { host: String });
labels!(RequestLabels { host: String, code: Code });
labels!(ApiLabels { method: &'static str, route: String, code: u16 });

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Metrics that have counted nothing.
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.1, 2.0, 15));
        let mut inner = Inner {
            registry: Registry::with_prefix("larder"),
            builds: Family::default(),
            build_duration: seconds(),
            stage_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.1, 2.0, 15))
            }),
            fetched: Counter::default(),
            written: Counter::default(),
            layers: Family::default(),
            queue: Gauge::default(),
            running: Gauge::default(),
            caches: Family::default(),
            cache_bytes: Gauge::default(),
            reserved: Gauge::default(),
            capacity: Gauge::default(),
            registry_requests: Family::default(),
            registry_retries: Family::default(),
            api_requests: Family::default(),
            api_duration: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            authentication_failures: Counter::default(),
            expiry_held: Gauge::default(),
            node_caches: Family::default(),
            node_attach_duration: seconds(),
            node_failures: Counter::default(),
            hosts: Mutex::default(),
        };
        inner.register();
        Metrics(Arc::new(inner))
    }

    /// An attempt at a build ended.
    pub fn build(&self, result: BuildResult, took: Duration) {
        self.0.builds.get_or_create(&ResultLabel { result }).inc();
        self.0.build_duration.observe(took.as_secs_f64());
    }

    /// A stage of a build is over.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.stage_duration.get_or_create(&StageLabel { stage }).observe(took.as_secs_f64());
    }

    /// A layer was committed: bytes that came from a registry for it, and bytes of tar.
    pub fn layer(&self, origin: LayerOrigin, fetched: u64, written: u64) {
        self.0.layers.get_or_create(&OriginLabel { origin }).inc();
        self.0.fetched.inc_by(fetched);
        self.0.written.inc_by(written);
    }

    /// Builds that wait, and builds under way.
    pub fn builds_now(&self, waiting: usize, running: usize) {
        self.0.queue.set(signed(waiting));
        self.0.running.set(signed(running));
    }

    /// Records by status.
    pub fn caches(&self, count: impl Fn(Status) -> usize) {
        for status in Status::ALL {
            self.0
                .caches
                .get_or_create(&StatusLabel { status: StatusValue(status) })
                .set(signed(count(status)));
        }
    }

    /// Bytes of content that is served, bytes that are reserved for caches, and bytes that may be.
    pub fn disk(&self, content: u64, reserved: u64, capacity: u64) {
        self.0.cache_bytes.set(i64::try_from(content).unwrap_or(i64::MAX));
        self.0.reserved.set(i64::try_from(reserved).unwrap_or(i64::MAX));
        self.0.capacity.set(i64::try_from(capacity).unwrap_or(i64::MAX));
    }

    /// Requests that a builder made to a registry and that were answered with `code`.
    pub fn registry_requests(&self, host: &str, code: u16, requests: u64) {
        let labels = RequestLabels { host: self.host(host), code: Code::of(code) };
        self.0.registry_requests.get_or_create(&labels).inc_by(requests);
    }

    /// A request to a registry was made again.
    pub fn registry_retry(&self, host: &str) {
        self.0.registry_retries.get_or_create(&HostLabel { host: self.host(host) }).inc();
    }

    /// A request to the API was answered. `route` is its template, never the path itself.
    pub fn api(&self, method: &'static str, route: &str, code: u16, took: Duration) {
        self.0.api_requests.get_or_create(&ApiLabels { method, route: route.to_owned(), code }).inc();
        self.0.api_duration.observe(took.as_secs_f64());
    }

    /// Somebody could not prove who they are.
    pub fn authentication_failure(&self) {
        self.0.authentication_failures.inc();
    }

    /// Whether nothing expires because the clock cannot be believed.
    pub fn expiry_held(&self, held: bool) {
        self.0.expiry_held.set(i64::from(held));
    }

    /// Image caches on a node, by what they are there.
    pub fn node_caches(&self, count: impl Fn(NodeCache) -> usize) {
        for state in NodeCache::ALL {
            self.0.node_caches.get_or_create(&NodeCacheLabel { state }).set(signed(count(state)));
        }
    }

    /// A node has an image cache, this long after it was wanted.
    pub fn node_attached(&self, took: Duration) {
        self.0.node_attach_duration.observe(took.as_secs_f64());
    }

    /// Something that a node has to do for an image cache failed.
    pub fn node_failure(&self) {
        self.0.node_failures.inc();
    }

    /// All of them in the text format of OpenMetrics 1.0, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        text
    }

    /// A host as a label: the first [`MAX_HOSTS`] by name.
    fn host(&self, host: &str) -> String {
        let mut hosts = self.0.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            if hosts.len() == MAX_HOSTS || host.len() > 255 {
                return "other".to_owned();
            }
            hosts.insert(host.to_owned());
        }
        host.to_owned()
    }
}

impl Inner {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("builds", "Attempts at a build by how they ended", self.builds.clone());
        r.register_with_unit(
            "build_duration",
            "Time of an attempt at a build",
            Unit::Seconds,
            self.build_duration.clone(),
        );
        r.register_with_unit(
            "build_stage_duration",
            "Time of a stage of a build",
            Unit::Seconds,
            self.stage_duration.clone(),
        );
        r.register_with_unit(
            "fetched",
            "Compressed layers from registries",
            Unit::Bytes,
            self.fetched.clone(),
        );
        r.register_with_unit("written", "Layers, decompressed", Unit::Bytes, self.written.clone());
        r.register("layers", "Committed layers by where they came from", self.layers.clone());
        r.register("queue_length", "Builds that wait for their turn", self.queue.clone());
        r.register("builds_running", "Builds under way", self.running.clone());
        r.register("caches", "Image caches by status", self.caches.clone());
        let bytes = Unit::Bytes;
        r.register_with_unit(
            "content",
            "Decompressed layers that are served",
            bytes,
            self.cache_bytes.clone(),
        );
        r.register_with_unit("reserved", "Sizes of all image caches", Unit::Bytes, self.reserved.clone());
        r.register_with_unit("capacity", "What all may occupy together", Unit::Bytes, self.capacity.clone());
        r.register(
            "registry_requests",
            "Requests to registries by host and HTTP status",
            self.registry_requests.clone(),
        );
        r.register("registry_retries", "Requests made again by host", self.registry_retries.clone());
        r.register("api_requests", "Requests to the API by route and HTTP status", self.api_requests.clone());
        r.register_with_unit(
            "api_request_duration",
            "Time until a request was answered",
            Unit::Seconds,
            self.api_duration.clone(),
        );
        r.register(
            "authentication_failures",
            "Requests whose credentials were refused",
            self.authentication_failures.clone(),
        );
        r.register(
            "expiry_held",
            "1 while the clock is not believed and nothing expires",
            self.expiry_held.clone(),
        );
        r.register(
            "node_caches",
            "Image caches on this node by what they are there",
            self.node_caches.clone(),
        );
        r.register_with_unit(
            "node_attach_duration",
            "Time from the wish for an image cache on this node until it is attached",
            Unit::Seconds,
            self.node_attach_duration.clone(),
        );
        r.register(
            "node_failures",
            "Steps towards image caches on this node that failed",
            self.node_failures.clone(),
        );
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
