//! Environment variables that Larder passes on to its child processes. A child gets no others, so that no
//! secret of the environment reaches a process that parses untrusted data.

/// Variables for the format of times and errors, and for the location of temporary files.
pub const GENERAL: [&str; 4] = ["TZ", "LANG", "LC_ALL", "TMPDIR"];

/// Variables for proxies and certificate authorities, for children that use the network.
pub const NETWORK: [&str; 10] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
];
