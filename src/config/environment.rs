//! Environment variables that processes of Larder pass on to their children. A child gets no others, so that no secret of the
//! environment reaches a process that reads untrusted bytes.

/// How times and errors are written, and where temporary files go.
pub const GENERAL: [&str; 4] = ["TZ", "LANG", "LC_ALL", "TMPDIR"];

/// How hosts are reached, and which certificate authorities are trusted: for children with a network.
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
