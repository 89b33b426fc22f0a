//! `[registry]`: the settings of connections to registries.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, check_range};
use larder_model::address_range::AddressRange;

/// Maximum value of the keys for retries.
pub const MAX_RETRIES: u32 = 100;

/// The `[registry]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Maximum number of connections to one host.
    pub connections_per_host: usize,
    /// Maximum number of connections for one blob of at least 32 MiB. A blob starts as one stream, and is
    /// split into ranges on more connections while the network is the bottleneck. 1 keeps one stream.
    pub ranges_per_blob: usize,
    /// Timeout for establishing a connection, seconds.
    pub connect_timeout_seconds: u64,
    /// Maximum time without a received byte before a transfer is closed and resumed, seconds.
    pub stall_timeout_seconds: u64,
    /// Timeout of a request for a manifest or token, seconds.
    pub request_timeout_seconds: u64,
    /// Maximum number of retries of a request without progress.
    pub retries: u32,
    /// Maximum number of retries of a command that a user runs, while a registry refuses connections, cannot
    /// be found or does not answer, and has not answered before. Builds of a daemon use `retries` instead.
    pub unreachable_retries: u32,
    /// Maximum wait between two attempts, seconds.
    pub backoff_max_seconds: u64,
    /// Directory with containerd's host configuration, `<dir>/<host>/hosts.toml`.
    pub certs_d: PathBuf,
    /// Addresses that are allowed even if a rule denies them.
    pub allow: Vec<AddressRange>,
    /// Addresses that builds of tenants cannot reach.
    pub deny: Vec<AddressRange>,
    /// Settings for single hosts and repositories.
    pub host: Vec<Host>,
}

/// One `[[registry.host]]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// `host[:port]`, or `host[:port]/repository` for the repositories below it.
    pub name: String,
    /// Mirrors, tried in order before the host itself: `[scheme://]host[:port][/path]`.
    pub mirrors: Vec<String>,
    /// `true` if the host uses plain HTTP, `false` if it uses HTTPS. A host on loopback without certificates
    /// defaults to HTTPS, and plain HTTP if it does not support TLS; all others default to HTTPS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_http: Option<bool>,
    /// Files with additional certificate authorities, PEM.
    pub ca: Vec<PathBuf>,
    /// File with the client certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    /// File with the key of the client certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// `true` if the path of a mirror replaces `/v2`.
    pub override_path: bool,
}

impl Default for Registry {
    fn default() -> Self {
        Registry {
            connections_per_host: 8,
            ranges_per_blob: 8,
            connect_timeout_seconds: 15,
            stall_timeout_seconds: 30,
            request_timeout_seconds: 60,
            retries: 8,
            unreachable_retries: 2,
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
        let mut seconds = |key: &str, value| check_range(faults, &format!("registry.{key}"), value, 1..=3600);
        seconds("connect_timeout_seconds", self.connect_timeout_seconds);
        seconds("stall_timeout_seconds", self.stall_timeout_seconds);
        seconds("request_timeout_seconds", self.request_timeout_seconds);
        seconds("backoff_max_seconds", self.backoff_max_seconds);
        check_range(faults, "registry.connections_per_host", self.connections_per_host, 1..=256);
        check_range(faults, "registry.ranges_per_blob", self.ranges_per_blob, 1..=64);
        check_range(faults, "registry.retries", self.retries, 0..=MAX_RETRIES);
        check_range(faults, "registry.unreachable_retries", self.unreachable_retries, 0..=MAX_RETRIES);
        for (i, host) in self.host.iter().enumerate() {
            let mut fault = |key: &str, reason: &str| {
                faults.push(Fault { key: format!("registry.host[{i}].{key}"), reason: reason.to_owned() });
            };
            if host.name.is_empty() {
                fault("name", "required, but missing: want host[:port][/repository]");
            }
            for (at, mirror) in host.mirrors.iter().enumerate() {
                let authority = mirror.rsplit("://").next().unwrap_or_default().split('/').next();
                if authority.is_some_and(|authority| authority.contains('@')) {
                    fault(
                        &format!("mirrors[{at}]"),
                        "it contains a user name or a password: use a pull secret",
                    );
                }
            }
            match (&host.client_cert, &host.client_key) {
                (Some(_), None) => fault("client_key", "required if client_cert is set"),
                (None, Some(_)) => fault("client_cert", "required if client_key is set"),
                _ => {}
            }
        }
    }
}
