//! `[api]`: the listeners of the daemon, and the limits of its clients.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, check_range};

/// The `[api]` section of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Unix socket. On it, root and the members of `socket_group` are the tenant `admin`.
    pub socket: PathBuf,
    /// Group that owns the socket and can use it, by name or number; empty means only root.
    pub socket_group: String,
    /// TCP address; `None` disables TCP. Without TLS, only loopback is allowed; requests always need
    /// credentials. If no tenant has any, TCP serves only health and metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SocketAddr>,
    /// File with the certificate chain for TLS, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// File with the key of the certificate, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Maximum number of connections. One eighth is reserved for the Unix socket; TCP gets the rest.
    pub max_connections: usize,
    /// Maximum number of TCP connections from one IPv4 address or one IPv6 network (/64). A proxy counts as
    /// one address.
    pub max_connections_per_address: usize,
    /// Maximum number of TCP connections that are older than 1 s and have not had a request with a valid
    /// credential.
    pub max_unauthenticated_connections: usize,
    /// Timeout for receiving the head of a request, and for a TLS handshake, seconds.
    pub header_timeout_seconds: u64,
    /// Timeout for receiving the body of a request, seconds. For an imported archive, it restarts with each
    /// received chunk.
    pub body_timeout_seconds: u64,
    /// Rate limit of each tenant, requests per second; also the burst size.
    pub requests_per_second: u32,
    /// Serve pages for a browser at `/ui/`.
    pub ui: bool,
    /// SHA-256, hexadecimal, of tokens that can only read `/metrics`. Tenants cannot, because metrics cover
    /// all tenants together.
    pub metrics_token_sha256: Vec<String>,
}

impl Default for Api {
    fn default() -> Self {
        Api {
            socket: PathBuf::from("/run/larder/larder.sock"),
            socket_group: String::new(),
            tcp: None,
            tls_certificate: None,
            tls_key: None,
            max_connections: 256,
            max_connections_per_address: 128,
            max_unauthenticated_connections: 32,
            header_timeout_seconds: 10,
            body_timeout_seconds: 30,
            requests_per_second: 50,
            ui: true,
            metrics_token_sha256: Vec::new(),
        }
    }
}

impl Api {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        check_range(faults, "api.max_connections", self.max_connections, 1..=65_536);
        let addresses = self.max_connections_per_address;
        check_range(faults, "api.max_connections_per_address", addresses, 1..=65_536);
        let unauthenticated = self.max_unauthenticated_connections;
        check_range(faults, "api.max_unauthenticated_connections", unauthenticated, 1..=65_536);
        check_range(faults, "api.header_timeout_seconds", self.header_timeout_seconds, 1..=300);
        check_range(faults, "api.body_timeout_seconds", self.body_timeout_seconds, 1..=300);
        check_range(faults, "api.requests_per_second", self.requests_per_second, 1..=100_000);
        let mut fault = |key: &str, reason: &str| {
            faults.push(Fault { key: format!("api.{key}"), reason: reason.to_owned() });
        };
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => fault("tls_key", "required if tls_certificate is set"),
            (None, Some(_)) => fault("tls_certificate", "required if tls_key is set"),
            (None, None) if self.tcp.is_some_and(|address| !address.ip().is_loopback()) => {
                fault("tcp", "want a loopback address, or set tls_certificate and tls_key");
            }
            _ => {}
        }
        if !self.socket.is_absolute() {
            fault("socket", "want an absolute path");
        }
        for (at, token) in self.metrics_token_sha256.iter().enumerate() {
            if token.len() != 64 || !token.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                fault(&format!("metrics_token_sha256[{at}]"), "want 64 lower-case hexadecimal digits");
            }
        }
    }
}
