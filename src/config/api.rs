//! `[api]`: where the daemon listens, and what a client may take of it.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Fault, within};

/// The section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Unix socket. Root and `socket_group` are the tenant `admin` there.
    pub socket: PathBuf,
    /// Group that owns the socket and may use it, by name or number; empty is root's alone.
    pub socket_group: String,
    /// Address for TCP; none without it. Without TLS only on loopback, without credentials not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SocketAddr>,
    /// Certificate chain for TLS, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Maximum connections at once. An eighth of them is the Unix socket's, TCP has the rest.
    pub max_connections: usize,
    /// Maximum TCP connections of one IPv4 address or one IPv6 network (/64). A proxy is one address.
    pub max_connections_per_address: usize,
    /// Maximum TCP connections older than 1 s over which no request had a valid credential.
    pub max_unauthenticated_connections: usize,
    /// Most seconds until the head of a request is there, and until a TLS handshake is done.
    pub header_timeout_seconds: u64,
    /// Most seconds until the body of a request is there; of an archive that is imported, until more of it is.
    pub body_timeout_seconds: u64,
    /// Requests per second of one tenant, and how many it may have saved up.
    pub requests_per_second: u32,
    /// SHA-256, hexadecimal, of tokens that may read `/metrics` and nothing else. Metrics tell of all tenants together, so
    /// no tenant may.
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
            metrics_token_sha256: Vec::new(),
        }
    }
}

impl Api {
    pub(super) fn check(&self, faults: &mut Vec<Fault>) {
        within(faults, "api.max_connections", self.max_connections, 1..=65_536);
        let addresses = self.max_connections_per_address;
        within(faults, "api.max_connections_per_address", addresses, 1..=65_536);
        let strangers = self.max_unauthenticated_connections;
        within(faults, "api.max_unauthenticated_connections", strangers, 1..=65_536);
        within(faults, "api.header_timeout_seconds", self.header_timeout_seconds, 1..=300);
        within(faults, "api.body_timeout_seconds", self.body_timeout_seconds, 1..=300);
        within(faults, "api.requests_per_second", self.requests_per_second, 1..=100_000);
        let mut fault = |key: &str, reason: &str| {
            faults.push(Fault { key: format!("api.{key}"), reason: reason.to_owned() });
        };
        match (&self.tls_certificate, &self.tls_key) {
            (Some(_), None) => fault("tls_key", "it is absent, but tls_certificate is there"),
            (None, Some(_)) => fault("tls_certificate", "it is absent, but tls_key is there"),
            (None, None) if self.tcp.is_some_and(|address| !address.ip().is_loopback()) => {
                fault("tcp", "without tls_certificate and tls_key want an address of loopback");
            }
            _ => {}
        }
        if !self.socket.is_absolute() {
            fault("socket", "want an absolute path");
        }
        for (at, token) in self.metrics_token_sha256.iter().enumerate() {
            if token.len() != 64 || !token.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                fault(&format!("metrics_token_sha256[{at}]"), "want 64 hexadecimal digits in lower case");
            }
        }
    }
}
