//! System files that a confined process opens later. None of them is secret.

use std::path::PathBuf;

/// Files that getaddrinfo(3) opens for a lookup. A rule applies to the file that exists now. If rename(2)
/// replaces /etc/resolv.conf during a build, lookups fail from then on, and the build fails with an error
/// that can be retried. The whole directory of systemd-resolved is allowed.
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

/// Certificate authorities. They are read for each new server, because a token server becomes known only from
/// a registry's response. Directories that also contain private keys are excluded.
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

/// Status files of this process (`sys::privilege`), and its descriptors, through which attributes are read
/// and written.
const PROCESS: [&str; 3] = ["/proc/self/status", "/proc/self/uid_map", "/proc/self/fd"];

/// Returns the files that the C library and the TLS library open during a build. It includes no module of
/// nsswitch.conf(5): `files` and `dns` are part of the C library (glibc 2.34), and a module that cannot be
/// loaded counts as unavailable.
pub(super) fn of_fetcher() -> impl Iterator<Item = PathBuf> {
    let fixed = RESOLVER.into_iter().chain(AUTHORITIES).map(PathBuf::from);
    // The variables of OpenSSL for custom certificate authorities.
    let named = ["SSL_CERT_FILE", "SSL_CERT_DIR"].into_iter().filter_map(std::env::var_os);
    let named = named.flat_map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
    fixed.chain(named.filter(|path| path.is_absolute()))
}

/// Returns the files below /proc that every role opens.
pub(super) fn of_process() -> impl Iterator<Item = PathBuf> {
    PROCESS.into_iter().map(PathBuf::from)
}
