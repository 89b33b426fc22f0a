//! `[registry]`: how registries are reached.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, within};
use larder_model::address_range::AddressRange;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Most connections to one host.
    pub connections_per_host: usize,
    /// Ranges of one large blob fetched at once; 1 fetches every blob as one stream.
    pub ranges_per_blob: usize,
    /// Most seconds until a connection stands.
    pub connect_timeout_seconds: u64,
    /// Most seconds without a byte before a transfer is cut and resumed.
    pub stall_timeout_seconds: u64,
    /// Most seconds of a request for a manifest or token.
    pub request_timeout_seconds: u64,
    /// How often a request is tried again without progress.
    pub retries: u32,
    /// Longest pause between two tries, seconds.
    pub backoff_max_seconds: u64,
    /// Directory in containerd's convention, `<dir>/<host>/hosts.toml`.
    pub certs_d: PathBuf,
    /// Addresses that may be connected to all the same.
    pub allow: Vec<AddressRange>,
    /// Addresses that orders of tenants cannot reach.
    pub deny: Vec<AddressRange>,
    /// Hosts and repositories that are reached in a way of their own.
    pub host: Vec<Host>,
}

/// One `[[registry.host]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// `host[:port]`, or `host[:port]/repository` for the repositories below it.
    pub name: String,
    /// Mirrors, tried in order before the host itself: `[scheme://]host[:port][/path]`.
    pub mirrors: Vec<String>,
    /// Whether it speaks plain http.
    pub plain_http: bool,
    /// Files with extra certificate authorities, PEM.
    pub ca: Vec<PathBuf>,
    /// File with the client certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// File with its key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// Whether the path of a mirror stands in the place of `/v2`.
    pub override_path: bool,
}

impl Default for Registry {
    fn default() -> Self {
        Registry {
            connections_per_host: 8,
            ranges_per_blob: 1,
            connect_timeout_seconds: 15,
            stall_timeout_seconds: 30,
            request_timeout_seconds: 60,
            retries: 8,
            backoff_max_seconds: 30,
            certs_d: PathBuf::from("/etc/containerd/certs.d"),
            allow: Vec::new(),
            deny: Vec::new(),
            host: Vec::new(),
        }
    }
}

impl Registry {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        let mut seconds = |key: &str, value| within(faults, &format!("registry.{key}"), value, 1..=3600);
        seconds("connect_timeout_seconds", self.connect_timeout_seconds);
        seconds("stall_timeout_seconds", self.stall_timeout_seconds);
        seconds("request_timeout_seconds", self.request_timeout_seconds);
        seconds("backoff_max_seconds", self.backoff_max_seconds);
        within(faults, "registry.connections_per_host", self.connections_per_host, 1..=256);
        within(faults, "registry.ranges_per_blob", self.ranges_per_blob, 1..=64);
        within(faults, "registry.retries", self.retries, 0..=100);
        for (i, host) in self.host.iter().enumerate() {
            let mut fault = |key: &str, reason: &str| {
                faults.push(Fault { key: format!("registry.host[{i}].{key}"), reason: reason.to_owned() });
            };
            if host.name.is_empty() {
                fault("name", "it is absent, want host[:port][/repository]");
            }
            match (&host.client_cert, &host.client_key) {
                (Some(_), None) => fault("client_key", "it is absent, but client_cert is there"),
                (None, Some(_)) => fault("client_cert", "it is absent, but client_key is there"),
                _ => {}
            }
        }
    }
}
