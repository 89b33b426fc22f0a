//! All metrics of the daemon: names, units and labels. `docs/reference/metrics.md` documents them, and a test
//! compares the two.
//!
//! The code limits the cardinality: of all label values, tenants can choose only the names of their image
//! caches, whose number is limited. A registry has its own label only if the configuration names it.

mod exposition;
mod hosts;
mod labels;
mod process;
mod successes;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

pub use exposition::Exposition;
use hosts::Hosts;
use labels::{
    ApiLabels, ClassValue, Code, FailureLabels, HostFailureLabels, HostLabel, NodeCacheLabel, OriginLabel,
    RequestLabels, ResultLabel, SourceLabel, StageLabel, StatusLabel, StatusValue,
};
pub use labels::{BuildResult, ByteSource, LayerOrigin, NodeCache, Stage};
use process::ProcessCollector;
use successes::Successes;

use crate::config::registry::Registry as RegistrySection;
use crate::version::VERSION;
use larder_model::class::Class;
use larder_model::image_cache::Status;

/// The metrics of one daemon. Clones share the same counters.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    builds: Family<ResultLabel, Counter>,
    build_failures: Family<FailureLabels, Counter>,
    build_duration: Histogram,
    stage_duration: Family<StageLabel, Histogram>,
    fetched: Counter,
    written: Counter,
    layers: Family<OriginLabel, Counter>,
    sources: Family<SourceLabel, Counter>,
    successes: Successes,
    queue: Gauge,
    running: Gauge,
    caches: Family<StatusLabel, Gauge>,
    cache_bytes: Gauge,
    reserved: Gauge,
    capacity: Gauge,
    registry_requests: Family<RequestLabels, Counter>,
    registry_retries: Family<HostLabel, Counter>,
    registry_replacements: Family<HostLabel, Counter>,
    registry_failures: Family<HostFailureLabels, Counter>,
    api_requests: Family<ApiLabels, Counter>,
    api_duration: Histogram,
    authentication_failures: Counter,
    expiry_held: Gauge,
    node_caches: Family<NodeCacheLabel, Gauge>,
    node_attach_duration: Histogram,
    node_failures: Counter,
    hosts: Hosts,
}

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
    /// Creates metrics with all counters at zero.
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.1, 2.0, 15));
        let mut inner = Inner {
            registry: Registry::default(),
            builds: Family::default(),
            build_failures: Family::default(),
            build_duration: seconds(),
            stage_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.1, 2.0, 15))
            }),
            fetched: Counter::default(),
            written: Counter::default(),
            layers: Family::default(),
            sources: Family::default(),
            successes: Successes::default(),
            queue: Gauge::default(),
            running: Gauge::default(),
            caches: Family::default(),
            cache_bytes: Gauge::default(),
            reserved: Gauge::default(),
            capacity: Gauge::default(),
            registry_requests: Family::default(),
            registry_retries: Family::default(),
            registry_replacements: Family::default(),
            registry_failures: Family::default(),
            api_requests: Family::default(),
            api_duration: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            authentication_failures: Counter::default(),
            expiry_held: Gauge::default(),
            node_caches: Family::default(),
            node_attach_duration: seconds(),
            node_failures: Counter::default(),
            hosts: Hosts::default(),
        };
        inner.register();
        // Prometheus sees an increase only after a first sample, so these start at 0.
        for result in BuildResult::ALL {
            let _ = inner.builds.get_or_create(&ResultLabel { result });
        }
        for class in Class::ALL.map(ClassValue) {
            let _ = inner.build_failures.get_or_create(&FailureLabels { class, result: BuildResult::Failed });
        }
        Metrics(Arc::new(inner))
    }

    /// Records the result and the duration of a build attempt.
    pub fn build(&self, result: BuildResult, took: Duration) {
        self.0.builds.get_or_create(&ResultLabel { result }).inc();
        self.0.build_duration.observe(took.as_secs_f64());
    }

    /// Records the class of a failed build attempt. `result` is its consequence.
    pub fn build_failure(&self, class: Class, result: BuildResult) {
        self.0.build_failures.get_or_create(&FailureLabels { class: ClassValue(class), result }).inc();
    }

    /// Records the duration of a stage of a build.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.0.stage_duration.get_or_create(&StageLabel { stage }).observe(took.as_secs_f64());
    }

    /// Records a committed layer, with the bytes fetched from a registry and the bytes of its tar.
    pub fn layer(&self, origin: LayerOrigin, fetched: u64, written: u64) {
        self.0.layers.get_or_create(&OriginLabel { origin }).inc();
        self.0.fetched.inc_by(fetched);
        self.0.written.inc_by(written);
    }

    /// Records the compressed bytes of layers from a source.
    pub fn layer_bytes(&self, source: ByteSource, bytes: u64) {
        self.0.sources.get_or_create(&SourceLabel { source }).inc_by(bytes);
    }

    /// Sets the time of the last success of all image caches, in seconds since the epoch. Each has its tenant
    /// and its name.
    pub fn last_successes<'a>(&self, times: impl Iterator<Item = (&'a str, &'a str, i64)>) {
        self.0.successes.replace(times);
    }

    /// Sets the number of queued and of running builds.
    pub fn builds_now(&self, waiting: usize, running: usize) {
        self.0.queue.set(signed(waiting));
        self.0.running.set(signed(running));
    }

    /// Sets the number of image caches by status.
    pub fn caches(&self, count: impl Fn(Status) -> usize) {
        for status in Status::ALL {
            self.0
                .caches
                .get_or_create(&StatusLabel { status: StatusValue(status) })
                .set(signed(count(status)));
        }
    }

    /// Sets the size of the served content, the size reserved for caches, and the capacity, all in bytes.
    pub fn disk(&self, content: u64, reserved: u64, capacity: u64) {
        self.0.cache_bytes.set(i64::try_from(content).unwrap_or(i64::MAX));
        self.0.reserved.set(i64::try_from(reserved).unwrap_or(i64::MAX));
        self.0.capacity.set(i64::try_from(capacity).unwrap_or(i64::MAX));
    }

    /// Sets the configured registries, whose hosts have their own label. Reads the names in `certs_d`.
    pub fn registries(&self, section: &RegistrySection) {
        self.0.hosts.replace(section);
    }

    /// Adds requests of a builder to a registry with the response status `code`.
    pub fn registry_requests(&self, host: &str, code: u16, requests: u64) {
        let labels = RequestLabels { host: self.0.hosts.label(host), code: Code::of(code) };
        self.0.registry_requests.get_or_create(&labels).inc_by(requests);
    }

    /// Records a slow connection to a registry that was replaced.
    pub fn registry_replacement(&self, host: &str) {
        self.0.registry_replacements.get_or_create(&HostLabel { host: self.0.hosts.label(host) }).inc();
    }

    /// Records a retry of a request to a registry.
    pub fn registry_retry(&self, host: &str) {
        self.0.registry_retries.get_or_create(&HostLabel { host: self.0.hosts.label(host) }).inc();
    }

    /// Records a request to a registry that failed at the last attempt.
    pub fn registry_failure(&self, host: &str, class: Class) {
        let labels = HostFailureLabels { host: self.0.hosts.label(host), class: ClassValue(class) };
        self.0.registry_failures.get_or_create(&labels).inc();
    }

    /// Records a response of the API. `route` is its template, never the path itself.
    pub fn api(&self, method: &'static str, route: &str, code: u16, took: Duration) {
        self.0.api_requests.get_or_create(&ApiLabels { method, route: route.to_owned(), code }).inc();
        self.0.api_duration.observe(took.as_secs_f64());
    }

    /// Records a request with missing or invalid credentials.
    pub fn authentication_failure(&self) {
        self.0.authentication_failures.inc();
    }

    /// Sets whether expiry is paused because the clock is not synchronized.
    pub fn expiry_held(&self, held: bool) {
        self.0.expiry_held.set(i64::from(held));
    }

    /// Sets the number of image caches on a node by state.
    pub fn node_caches(&self, count: impl Fn(NodeCache) -> usize) {
        for state in NodeCache::ALL {
            self.0.node_caches.get_or_create(&NodeCacheLabel { state }).set(signed(count(state)));
        }
    }

    /// Records the time from the request of an image cache on a node until it was attached.
    pub fn node_attached(&self, took: Duration) {
        self.0.node_attach_duration.observe(took.as_secs_f64());
    }

    /// Records a failed step for an image cache on a node.
    pub fn node_failure(&self) {
        self.0.node_failures.inc();
    }

    /// Returns all metrics in a text format.
    pub fn encode(&self, exposition: Exposition) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.0.registry);
        exposition.convert(text)
    }
}

impl Inner {
    fn register(&mut self) {
        self.registry.register_collector(Box::new(ProcessCollector::new()));
        let r = self.registry.sub_registry_with_prefix("larder");
        let labels = [
            ("version", VERSION.version),
            ("commit", VERSION.commit),
            ("features", VERSION.features.first().copied().unwrap_or_default()),
        ];
        r.register("build", "Version of this program", Info::new(labels.to_vec()));
        r.register("builds", "Build attempts by result", self.builds.clone());
        r.register(
            "build_failures",
            "Failed build attempts by class and result",
            self.build_failures.clone(),
        );
        r.register_with_unit(
            "build_duration",
            "Duration of a build attempt",
            Unit::Seconds,
            self.build_duration.clone(),
        );
        r.register_with_unit(
            "build_stage_duration",
            "Duration of a stage of a build",
            Unit::Seconds,
            self.stage_duration.clone(),
        );
        r.register_with_unit(
            "fetched",
            "Compressed layers fetched from registries",
            Unit::Bytes,
            self.fetched.clone(),
        );
        r.register_with_unit("written", "Decompressed layers written", Unit::Bytes, self.written.clone());
        r.register("layers", "Committed layers by origin", self.layers.clone());
        r.register_with_unit("layer", "Compressed layers by source", Unit::Bytes, self.sources.clone());
        r.register_collector(Box::new(self.successes.clone()));
        r.register("queue_length", "Queued builds", self.queue.clone());
        r.register("builds_running", "Running builds", self.running.clone());
        r.register("caches", "Image caches by status", self.caches.clone());
        let bytes = Unit::Bytes;
        r.register_with_unit(
            "content",
            "Decompressed layers of available image caches",
            bytes,
            self.cache_bytes.clone(),
        );
        r.register_with_unit(
            "reserved",
            "Total size reserved for image caches",
            Unit::Bytes,
            self.reserved.clone(),
        );
        r.register_with_unit("capacity", "Capacity for all image caches", Unit::Bytes, self.capacity.clone());
        r.register(
            "registry_requests",
            "Requests to registries by host and HTTP status",
            self.registry_requests.clone(),
        );
        r.register(
            "registry_retries",
            "Retried requests to registries by host",
            self.registry_retries.clone(),
        );
        r.register(
            "registry_replaced_connections",
            "Slow connections to registries that were replaced by host",
            self.registry_replacements.clone(),
        );
        r.register(
            "registry_failures",
            "Requests to registries that failed at the last attempt by host and class",
            self.registry_failures.clone(),
        );
        r.register("api_requests", "Requests to the API by route and HTTP status", self.api_requests.clone());
        r.register_with_unit(
            "api_request_duration",
            "Duration of a request to the API",
            Unit::Seconds,
            self.api_duration.clone(),
        );
        r.register(
            "authentication_failures",
            "Requests with refused credentials",
            self.authentication_failures.clone(),
        );
        r.register(
            "expiry_held",
            "1 while the clock is not synchronized and expiry is paused",
            self.expiry_held.clone(),
        );
        r.register("node_caches", "Image caches on this node by state", self.node_caches.clone());
        r.register_with_unit(
            "node_attach_duration",
            "Time from the request of an image cache on this node until it is attached",
            Unit::Seconds,
            self.node_attach_duration.clone(),
        );
        r.register("node_failures", "Failed steps for image caches on this node", self.node_failures.clone());
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
