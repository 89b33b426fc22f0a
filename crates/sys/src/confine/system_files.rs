//! Files of the system that a confined process opens while it works. None of them is a secret.

use std::path::PathBuf;

/// What getaddrinfo(3) opens at a look-up. A rule holds for the file that is there now: where /etc/resolv.conf is replaced
/// by rename(2) in the midst of a build, look-ups fail from then on, and the build with them, as one to be tried again.
/// systemd-resolved's lies in a directory of its own, which is granted whole.
const RESOLVER: [&str; 9] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/services",
    "/etc/networks",
    "/etc/protocols",
    "/run/systemd/resolve",
];

/// Certificate authorities: read for each server that is spoken to, and a token server is known only from a registry's
/// answer. Never a directory that has private keys beside them.
const AUTHORITIES: [&str; 12] = [
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki/trust",
    "/var/lib/ca-certificates",
];

/// Facts of this process (`sys::privilege`), and its descriptors, by which attributes are read and written.
const PROCESS: [&str; 3] = ["/proc/self/status", "/proc/self/uid_map", "/proc/self/fd"];

/// Files that the C library and the TLS library open while a build runs. No module of nsswitch.conf(5) is among them: `files` and `dns`
/// are part of the C library (glibc 2.34), and a module that cannot be loaded counts as one that does not answer.
pub(super) fn of_fetcher() -> impl Iterator<Item = PathBuf> {
    let fixed = RESOLVER.into_iter().chain(AUTHORITIES).map(PathBuf::from);
    // The variables that name authorities of one's own, as OpenSSL has them.
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
    let named = named.flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
    fixed.chain(named.filter(|path| path.is_absolute()))
}

/// Files below /proc that every role opens.
pub(super) fn of_process() -> impl Iterator<Item = PathBuf> {
    PROCESS.into_iter().map(PathBuf::from)
}
