//! Which addresses a connection may go to: the defence against a registry that sends its client into our network.
//!
//! Every name is resolved here and every literal checked, so what is checked is what is connected to. A proxy (from the
//! environment) resolves names itself: behind one, only literals and the proxy's own name are checked here.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::error::Fault;

/// Where an address lies, from harmless to never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Zone {
    /// The internet.
    Public,
    /// RFC 1918, RFC 6598, RFC 4193.
    Private,
    /// This machine.
    Loopback,
    /// Link-local, cloud metadata services, "this network": no registry lives there.
    Forbidden,
}

impl Zone {
    /// The zone of an address; IPv4 inside IPv6 (mapped, NAT64) counts as the IPv4 address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Zone::of_v4(v4),
            IpAddr::V6(v6) => Zone::of_v6(v6),
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [a, b, ..] = v4.octets();
        if a == 0 || v4.is_link_local() || v4.is_broadcast() || v4.is_multicast() {
            Zone::Forbidden
        } else if v4 == Ipv4Addr::new(100, 100, 100, 200) {
            // Metadata service of Alibaba Cloud, inside the shared range of RFC 6598.
            Zone::Forbidden
        } else if v4.is_loopback() {
            Zone::Loopback
        } else if v4.is_private() || (a == 100 && (64..128).contains(&b)) {
            Zone::Private
        } else {
            Zone::Public
        }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
        if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = v6.segments() {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            return Zone::of_v4(Ipv4Addr::new(a, b, c, d));
        }
        if v6.is_loopback() {
            Zone::Loopback
        } else if v6.is_unspecified() || v6.is_unicast_link_local() || v6.is_multicast() || v6 == AWS_METADATA
        {
            Zone::Forbidden
        } else if v6.is_unique_local() {
            Zone::Private
        } else {
            Zone::Public
        }
    }
}

/// The address that a URL names literally, if it does.
pub(crate) fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Whether a host, without port, is this machine by its name or address.
pub(crate) fn is_loopback_name(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| Zone::of(ip) == Zone::Loopback)
}

/// Refuses a literal address outside of `within`; names are the resolver's.
pub(crate) fn check_literal(url: &Url, within: Zone) -> Result<(), Fault> {
    match literal(url) {
        Some(ip) if Zone::of(ip) > within => {
            Err(Fault::Refused(AddressRefused::new(&ip.to_string()).to_string()))
        }
        _ => Ok(()),
    }
}

/// A name led to addresses that are not allowed here.
#[derive(Debug, thiserror::Error)]
#[error(
    "{host} lies at an address that a registry may not send a client to (loopback, private, link-local or metadata)"
)]
pub(crate) struct AddressRefused {
    host: String,
}

impl AddressRefused {
    fn new(host: &str) -> Self {
        AddressRefused { host: host.to_owned() }
    }
}

/// The system's resolver, whose answers outside of `within` are dropped.
#[derive(Debug)]
pub(crate) struct CheckedResolver {
    /// The innermost zone allowed.
    pub(crate) within: Zone,
    /// Host names of the proxies, which a person configured and which may lie in a private network.
    pub(crate) proxies: Arc<HashSet<String>>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let proxy = self.proxies.contains(name.as_str());
        let within = if proxy { Zone::Loopback } else { self.within };
        Box::pin(async move {
            let all = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = all.filter(|found| Zone::of(found.ip()) <= within).collect();
            if allowed.is_empty() {
                return Err(AddressRefused::new(name.as_str()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The host names in the proxy variables.
pub(crate) fn proxy_hosts(variable: impl Fn(&str) -> Option<String>) -> HashSet<String> {
    const VARIABLES: [&str; 6] =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let host = |value: String| {
        let url = if value.contains("://") { value } else { format!("http://{value}") };
        Url::parse(&url).ok()?.host_str().map(str::to_owned)
    };
    VARIABLES.into_iter().filter_map(&variable).filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones() {
        for (address, zone) in [
            ("8.8.8.8", Zone::Public),
            ("100.63.0.1", Zone::Public),
            ("172.32.0.1", Zone::Public),
            ("2606:4700::1", Zone::Public),
            ("10.1.2.3", Zone::Private),
            ("172.16.0.1", Zone::Private),
            ("192.168.1.1", Zone::Private),
            ("100.64.0.1", Zone::Private),
            ("fd12::1", Zone::Private),
            ("127.8.8.8", Zone::Loopback),
            ("::1", Zone::Loopback),
            ("::ffff:127.0.0.1", Zone::Loopback),
            ("0.1.2.3", Zone::Forbidden),
            ("::", Zone::Forbidden),
            ("169.254.169.254", Zone::Forbidden),
            ("::ffff:169.254.169.254", Zone::Forbidden),
            ("64:ff9b::169.254.169.254", Zone::Forbidden),
            ("fe80::1", Zone::Forbidden),
            ("fd00:ec2::254", Zone::Forbidden),
            ("100.100.100.200", Zone::Forbidden),
        ] {
            assert_eq!(Zone::of(address.parse().unwrap()), zone, "{address}");
        }
    }

    #[test]
    fn odd_spellings_of_an_address_are_the_address() {
        for url in ["http://0x7f.1/", "http://2130706433/", "http://127.1/", "http://[::ffff:7f00:1]/"] {
            assert!(check_literal(&url.parse().unwrap(), Zone::Private).is_err(), "{url}");
        }
        assert!(check_literal(&"http://name.io/".parse().unwrap(), Zone::Public).is_ok());
    }

    #[tokio::test]
    async fn names_are_checked_by_what_they_resolve_to() {
        let proxies = Arc::new(HashSet::new());
        let resolve = |within| {
            CheckedResolver { within, proxies: Arc::clone(&proxies) }.resolve("localhost".parse().unwrap())
        };
        let refused = resolve(Zone::Private).await.err().unwrap();
        assert!(refused.downcast_ref::<AddressRefused>().is_some());
        assert!(resolve(Zone::Loopback).await.is_ok());
    }

    #[test]
    fn proxies_from_the_environment() {
        let set = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://u:p@proxy.corp:3128".to_owned()),
            "http_proxy" => Some("other.corp:80".to_owned()),
            _ => None,
        };
        assert_eq!(proxy_hosts(set), HashSet::from(["proxy.corp".to_owned(), "other.corp".to_owned()]));
    }
}
