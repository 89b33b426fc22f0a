//! The name under which a client reaches the daemon (`Host`), as a protection against DNS rebinding.
//!
//! A forwarded Unix socket (`ssh -L`) is reachable by every site that is open in the browser, if the site
//! resolves its own name to a loopback address. Such a request has the name of the site.

use std::net::IpAddr;

use axum::http::header;
use axum::http::request::Parts;
use axum::http::uri::Authority;

/// Returns the host and port to which a request was sent.
pub(crate) fn of(parts: &Parts) -> Option<Authority> {
    match parts.headers.get(header::HOST) {
        Some(host) => Authority::try_from(host.as_bytes()).ok(),
        None => parts.uri.authority().cloned(),
    }
}

/// Returns `true` for a name or address of this host.
pub(crate) fn is_local(host: &Authority) -> bool {
    let name = host.host().trim_start_matches('[').trim_end_matches(']');
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => ["localhost", "larder"].iter().any(|local| name.eq_ignore_ascii_case(local)),
    }
}

/// Returns `true` if the name can belong to a site: it has a dot, and is no address of this host. Clients of
/// the socket use arbitrary names without a dot.
pub(super) fn can_be_a_site(host: &Authority) -> bool {
    host.host().contains('.') && !is_local(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_local() {
        let local = |host: &str| is_local(&host.parse().unwrap());
        for own in
            ["localhost", "localhost:8080", "127.0.0.1:80", "127.9.9.9", "[::1]:1", "larder", "LocalHost"]
        {
            assert!(local(own), "{own}");
        }
        let others = [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.1",
            "[fe80::1]",
            "larder.example",
            "127.0.0.1.nip.io",
        ];
        for other in others {
            assert!(!local(other), "{other}");
        }
    }

    #[test]
    fn a_name_with_a_dot_can_be_a_site() {
        let site = |host: &str| can_be_a_site(&host.parse().unwrap());
        assert!(site("evil.example:80") && site("127.0.0.1.nip.io") && site("localhost."));
        assert!(!site("localhost") && !site("d") && !site("127.0.0.1:8080") && !site("[::1]"));
    }
}
